"""The packed corpus: every byte once, splits by content, a cache that is either whole or absent."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel

from mull.training.data import Corpus, text
from mull.training.data.tokenizer import byte_tokenizer, load_tokenizer

END = 256
RECORDS = [{"q": f"What is {i} times {i}? é", "a": f"{i * i} <end>"} for i in range(400)]


def write_records(file: Path, records: list[dict[str, str]]) -> str:
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(file)


def build(tmp_path: Path, *paths: str, **changes: Any) -> Corpus:
    settings = {"fields": ["q", "a"], "tokenizer": byte_tokenizer(), "held_out": 0.2, "cache": str(tmp_path / "cache")}
    return Corpus.build(list(paths), **{**settings, **changes})


def tokens_of(corpus: Corpus, split: Any) -> np.ndarray:
    """All tokens of a split, read back by windows of one prediction."""
    windows = [corpus.window(split, i, 1) for i in range(corpus.windows(split, 1))]
    return np.concatenate([windows[0][:1], *(window[1:] for window in windows)])


def documents_of(corpus: Corpus, split: Any) -> list[bytes]:
    """The documents of a split, between end tokens."""
    tokens = tokens_of(corpus, split).tolist()
    assert tokens.pop() == END
    documents = [bytearray()]
    for token in tokens:
        if token == END:
            documents.append(bytearray())
        else:
            documents[-1].append(token)
    return [bytes(document) for document in documents]


def test_every_byte_is_packed_once(tmp_path: Path) -> None:
    """Both splits together hold each document whole; a document that spells "<end>" is not cut there."""
    corpus = build(tmp_path, write_records(tmp_path / "a.jsonl", RECORDS))
    expected = {f"{record['q']}\n{record['a']}".encode() for record in RECORDS}
    train, validation = documents_of(corpus, "train"), documents_of(corpus, "validation")
    assert set(train) | set(validation) == expected and len(train) + len(validation) == len(RECORDS)
    assert corpus.bytes("train") == sum(map(len, train)) == corpus.tokens("train") - len(train)
    assert corpus.documents("validation") == len(validation)
    assert 40 < len(validation) < 120  # 400 * 0.2 = 80, five standard deviations are 40


def test_the_split_follows_content_alone(tmp_path: Path) -> None:
    """Renaming, reordering, splitting files and repeating records moves no document to the other split."""
    first = build(tmp_path, write_records(tmp_path / "a.jsonl", RECORDS))
    write_records(tmp_path / "z.jsonl", RECORDS[:200])
    write_records(tmp_path / "b.jsonl", RECORDS[::-1])
    second = build(tmp_path, str(tmp_path / "z.jsonl"), str(tmp_path / "b.jsonl"))
    assert second.documents("train") + second.documents("validation") == 600
    for split in ("train", "validation"):
        assert set(documents_of(first, split)) == set(documents_of(second, split))


def test_windows_cover_the_corpus(tmp_path: Path) -> None:
    """Windows in order predict each token after the first once; the rest is shorter than a window."""
    corpus = build(tmp_path, write_records(tmp_path / "a.jsonl", RECORDS))
    windows = [corpus.window("train", i, 37) for i in range(corpus.windows("train", 37))]
    assert {len(window) for window in windows} == {38}
    predicted = np.concatenate([window[1:] for window in windows])
    stream = tokens_of(corpus, "train")[1:]
    assert np.array_equal(predicted, stream[: len(predicted)]) and 0 <= len(stream) - len(predicted) < 37
    with pytest.raises(IndexError, match=f"window {len(windows)} of {len(windows)} in the train split"):
        corpus.window("train", len(windows), 37)


def test_random_windows_are_addressed_and_reach_every_place(tmp_path: Path) -> None:
    """A window is a function of (seed, index), and every place from the first to the last is drawn some time."""
    corpus = build(tmp_path, write_records(tmp_path / "a.jsonl", RECORDS[:20]))
    many = corpus.random_windows("train", 0, range(10_000), 40)
    assert np.array_equal(many[7], corpus.random_window("train", 0, 7, 40))
    assert not np.array_equal(many, corpus.random_windows("train", 1, range(10_000), 40))
    tokens = tokens_of(corpus, "train")
    # 10,000 draws miss one of about 500 places with probability 1e-6.
    assert {w.tobytes() for w in many} == {tokens[i : i + 41].tobytes() for i in range(len(tokens) - 40)}
    assert many.dtype == np.int64 and many.shape == (10_000, 41)


def test_the_cache_is_reused_until_something_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second build tokenizes nothing; another file time, fields, share or tokenizer builds anew."""
    file = write_records(tmp_path / "a.jsonl", RECORDS)
    built: list[str] = []
    write = text._write

    def count_and_write(*arguments: Any) -> None:
        built.append("built")
        write(*arguments)

    monkeypatch.setattr(text, "_write", count_and_write)
    for _ in range(2):
        build(tmp_path, file)
    assert len(built) == 1
    other = byte_tokenizer()
    other.add_special_tokens(["<more>"])
    for changes in ({"fields": ["q"]}, {"held_out": 0.3}, {"tokenizer": other}):
        build(tmp_path, file, **changes)
    os.utime(file, ns=(1, 1))
    build(tmp_path, file)
    assert len(built) == 5 and len(list((tmp_path / "cache").iterdir())) == 5


@pytest.mark.parametrize("damage", ["short", "missing", "counts"])
def test_a_damaged_cache_is_built_anew(tmp_path: Path, damage: str) -> None:
    """Cut, lost or garbled files in the cache cost time, never data."""
    file = write_records(tmp_path / "a.jsonl", RECORDS)
    good = documents_of(build(tmp_path, file), "train")
    (folder,) = (tmp_path / "cache").iterdir()
    if damage == "short":
        os.truncate(folder / "train.bin", 100)
    elif damage == "missing":
        (folder / "validation.bin").unlink()
    else:
        (folder / "corpus.json").write_text("{")
    assert documents_of(build(tmp_path, file), "train") == good


def test_a_corpus_larger_than_the_write_buffer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flushing a hundred times or once writes the same files: nothing is lost or reordered at the seams."""
    file = write_records(tmp_path / "a.jsonl", RECORDS)
    whole = build(tmp_path, file)
    monkeypatch.setattr(text, "ENCODE_AT_ONCE", 100)
    pieces = build(tmp_path, file, cache=str(tmp_path / "other"))
    for split in ("train", "validation"):
        assert documents_of(whole, split) == documents_of(pieces, split)


def test_large_vocabularies_take_32_bits(tmp_path: Path) -> None:
    """Ids beyond 65535 survive: uint16 would wrap around without a word."""
    words = Tokenizer(WordLevel({"a": 70_000, "<end>": 70_001}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(str(tmp_path / "tokenizer.json"))
    corpus = build(tmp_path, write_records(tmp_path / "a.jsonl", RECORDS), tokenizer=tokenizer)
    assert set(corpus.window("train", 0, 30).tolist()) == {70_000, 70_001}


@pytest.mark.parametrize("bad", ["", '{"q": "x"}', "not json", '{"q": "\\ud800", "a": ""}'])
def test_errors_leave_nothing_behind(tmp_path: Path, bad: str) -> None:
    """A fault in the last record, or a corpus without text: no folder, whole or half, stays in the cache."""
    file = tmp_path / "a.jsonl"
    file.write_text((json.dumps(RECORDS[0]) + "\n") * 50 + bad if bad else "\n\n")
    with pytest.raises(
        ValueError, match="the corpus is empty: no text in .*a.jsonl" if not bad else r"a.jsonl, line 51"
    ):
        build(tmp_path, str(file))
    assert list((tmp_path / "cache").iterdir()) == []


def test_shares_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    """Shares outside (0, 1] name the value and the limit."""
    (tmp_path / "a.txt").write_text("text")
    for share in (0.0, 1.1, -0.1):
        with pytest.raises(ValueError, match=f"held_out is {share}: it must be above 0 and at most 1"):
            build(tmp_path, str(tmp_path / "a.txt"), fields=None, held_out=share)


def test_a_split_shorter_than_a_window_says_so(tmp_path: Path) -> None:
    """One short file is one document, so one split is empty: the message counts and names the remedies."""
    (tmp_path / "a.txt").write_text("a short text")
    corpus = build(tmp_path, str(tmp_path / "a.txt"), fields=None)
    full, empty = sorted(("train", "validation"), key=corpus.tokens, reverse=True)  # type: ignore[arg-type]
    corpus.require_window(full, 12)  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=f"the {full} split has 13 tokens, fewer than one window of 14: give more text"
    ):
        corpus.require_window(full, 13)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"the {empty} split has 0 tokens, fewer than one window of 2"):
        corpus.random_window(empty, 0, 0, 1)  # type: ignore[arg-type]


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the disk: a folder without a living writer goes when the next corpus is built; one with a writer stays."""
    cache = tmp_path / "cache"
    (cache / "unfinished-dead" / "corpus").mkdir(parents=True)
    (cache / "mine").mkdir()
    here: list[set[str]] = []

    def writing(*settings: Any) -> None:
        if not here:  # another writer comes while this one is at work
            here.append({path.name for path in cache.iterdir()})
            build(tmp_path, write_records(tmp_path / "b.jsonl", RECORDS[:100]))
            here.append({path.name for path in cache.iterdir()})
        real(*settings)

    real = text._write
    monkeypatch.setattr(text, "_write", writing)
    corpus = build(tmp_path, write_records(tmp_path / "a.jsonl", RECORDS))
    (own,) = here[0] - {"mine"}
    assert own.startswith("unfinished-") and own != "unfinished-dead" and own in here[1] and len(here[1]) == 3
    assert corpus.documents("train") + corpus.documents("validation") == len(RECORDS)
    left = {path.name for path in cache.iterdir()}
    assert len(left) == 3 and "mine" in left and not any(name.startswith("unfinished") for name in left)


def test_a_killed_writer_leaves_a_folder_that_can_be_told(tmp_path: Path) -> None:
    """Guards the lock of a writer: it ends with its process, by whatever signal."""
    source = write_records(tmp_path / "a.jsonl", RECORDS)
    child = os.fork()
    if child == 0:
        text._write = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
        try:
            build(tmp_path, source)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    (left,) = (tmp_path / "cache").iterdir()
    assert left.name.startswith("unfinished-")
    build(tmp_path, source)
    (left,) = (tmp_path / "cache").iterdir()
    assert not left.name.startswith("unfinished-")
