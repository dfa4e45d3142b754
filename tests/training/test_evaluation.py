"""The folder is enough to measure it, and not trusted: nothing that it names is imported, read or written unasked."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

import mull
import mull.checkpoints
from mull.checkpoints import huginn, store
from mull.cli import main
from mull.training.data.tokenizer import byte_tokenizer, load_tokenizer
from mull.training.evaluation import data_of
from mull.training.measuring import check_settling

TEXT_DATA = "mull.training.data.TextData"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with two texts in it."""
    for name in ("own", "other"):
        (tmp_path / f"{name}.txt").write_text("".join(f"{name} line {i} of the text\n" for i in range(400)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def words() -> Tokenizer:
    """A tokenizer of whole words, with an end token of its own."""
    ids = {word: i for i, word in enumerate(["<unk>", "</s>", "own", "other", "line", "of", "the", "text"])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def text_folder(folder: Path, own: Tokenizer, **arguments: Any) -> Path:
    """A checkpoint folder that says it was trained on own.txt."""
    config = mull.RecurrentDepthConfig(
        vocab_size=own.get_vocab_size(), d_model=16, n_heads=2, d_ff=16, max_length=32, mean_iterations=2
    )
    said = {"paths": ["own.txt"], "length": 16, "held_out": 0.3, "tokenizer": None, **arguments}
    data = {"class_path": TEXT_DATA, "init_args": said}
    store.save(mull.RecurrentDepthTransformer(config), folder, own, {"data": data})
    return folder


def evaluate(folder: Path, *options: str) -> int:
    return main(["evaluate", str(folder), "--examples", "4", "--iterations", "2", "--json", *options])


def line(capsys: pytest.CaptureFixture[str]) -> str:
    said = capsys.readouterr().err
    assert said.startswith("mull: error: ") and said.count("\n") == 1 and said.strip().isprintable()
    return said


def test_the_folders_own_texts_are_read_after_a_word_only(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards files of the user: a pipe that the folder names would wait for ever, and is not opened."""
    folder = text_folder(place / "model", byte_tokenizer(), paths=["pipe.txt", "own.txt"])
    os.mkfifo("pipe.txt")
    assert evaluate(folder) == 2
    assert "names texts of its own, ['pipe.txt', 'own.txt']" in line(capsys)
    assert evaluate(folder, "--paths", "other.txt") == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["bits_per_byte"] > 0
    Path("pipe.txt").unlink()
    Path("pipe.txt").write_text("mine\n" * 900)
    assert evaluate(folder, "--trust") == 0
    held_out = data_of(folder, trust=True).corpus
    assert 0 < held_out.tokens("validation") < held_out.tokens("train")  # the split of the run, not all of it
    assert data_of(folder, ["own.txt"]).corpus.tokens("train") == 0  # texts of the user are measured whole


def test_the_cache_is_never_where_the_folder_says(place: Path) -> None:
    """Guards against writing where a stranger points; also with --trust, which is about reading."""
    folder = text_folder(place / "model", byte_tokenizer(), cache=str(place / "elsewhere"))
    assert evaluate(folder, "--trust") == 0 and evaluate(folder, "--paths", "other.txt") == 0
    assert not (place / "elsewhere").exists() and (place / ".cache" / "mull").is_dir()


def test_the_tokenizer_is_the_folders_own(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards moving: the tokenizer that training.yaml names is gone or another, and the folder goes elsewhere."""
    words().save("words.json")
    folder = text_folder(place / "model", load_tokenizer("words.json"), tokenizer="words.json")
    byte_tokenizer().save("words.json")
    shutil.move(folder, place / "moved")
    assert data_of(place / "moved", ["own.txt"]).tokenizer.get_vocab() == words().get_vocab()
    assert evaluate(place / "moved", "--paths", "other.txt") == 0
    assert main(["generate", str(place / "moved"), "--prompt", "own line", "--max-new-tokens", "2"]) == 0
    capsys.readouterr()
    (place / "moved" / "tokenizer.json").unlink()
    assert evaluate(place / "moved", "--paths", "other.txt") == 2
    assert "tokenizer.json is missing" in line(capsys)


@pytest.mark.parametrize("tokenizer", [None, words()], ids=["bytes", "words"])
def test_a_converted_folder_is_measured_on_texts(
    tokenizer: Tokenizer | None, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards public models, which have no training.yaml: their own tokenizer, or bytes, in either layout."""
    size = 257 if tokenizer is None else 8
    config = mull.RecurrentDepthConfig(vocab_size=size, d_model=16, n_heads=2, max_length=32, mean_iterations=2)
    huginn.write(mull.RecurrentDepthTransformer(config), place / "public", tokenizer)
    assert main(["convert", "public", "ours"]) == 0
    capsys.readouterr()
    rows = []
    for folder in ("public", "ours"):
        assert evaluate(place / folder) == 2
        assert "name text with --paths" in line(capsys)
        assert evaluate(place / folder, "--paths", "own.txt") == 0
        rows.append(json.loads(capsys.readouterr().out)["rows"][0])
    assert rows[0]["loss"] == rows[1]["loss"] > 0


def test_a_tokenizer_that_is_too_large_for_the_model(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = mull.RecurrentDepthConfig(vocab_size=8, d_model=16, n_heads=2)
    mull.save(mull.RecurrentDepthTransformer(config), place / "model")
    assert evaluate(place / "model", "--paths", "own.txt") == 2
    assert "has no tokenizer.json, and bytes have 257 tokens, more than the 8 of the model" in line(capsys)
    mull.save(mull.load(place / "model"), place / "model", byte_tokenizer())
    assert evaluate(place / "model", "--paths", "own.txt") == 2
    assert "tokenizer.json has 257 tokens, more than the 8" in line(capsys)


@pytest.mark.parametrize("word", [[], ["--trust"], ["--paths", "own.txt"]], ids=str)
@pytest.mark.parametrize(
    "data",
    [
        {"class_path": "mull.checkpoints.evil.code.Data"},
        {"class_path": "evil.Data"},
        {"class_path": TEXT_DATA, "init_args": {"paths": ["own.txt"], "fields": {"class_path": "evil.Data"}}},
        {"class_path": TEXT_DATA, "init_args": {"paths": ["own.txt"], "seed": [{"class_path": "evil.Data"}]}},
        {"class_path": "mull.training.data.TaskData", "init_args": {"task": {"class_path": "evil.Data"}}},
    ],
)
def test_nothing_that_a_folder_names_is_imported(
    data: dict[str, Any],
    word: list[str],
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Guards the closed list: also a folder that lies among the checkpoints of mull, where Python would find its code;
    --trust is about texts and opens nothing."""
    (place / "evil").mkdir()
    for file in (place / "evil.py", place / "evil" / "code.py"):
        file.write_text(f"open({str(place / 'imported')!r}, 'w')")
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.setattr(mull.checkpoints, "__path__", [*mull.checkpoints.__path__, str(place)])
    folder = text_folder(place / "model", byte_tokenizer())
    (folder / "training.yaml").write_text(json.dumps({"data": data}))
    assert evaluate(folder, *word) == 2
    said = line(capsys)
    refusals = ("which is not mull's; name its module with --plugin", "leave --paths out", "names texts of its own")
    assert any(refusal in said for refusal in refusals)
    assert not (place / "imported").exists() and not [name for name in sys.modules if "evil" in name]


def test_python_files_in_a_folder_are_not_run(place: Path) -> None:
    """Guards a process that stands in the folder itself, where Python looks for modules by itself."""
    folder = text_folder(place / "model", byte_tokenizer())
    shutil.copy("own.txt", folder)
    for name in ("evil", "sitecustomize", "modeling", "config", "tokenizer", "training", "rich_", "yaml_"):
        (folder / f"{name}.py").write_text("raise SystemExit(99)")
    lines = [["inspect", "."], ["generate", ".", "--prompt", "a"], ["evaluate", ".", "--paths", "own.txt"]]
    code = f"from mull.cli import main; print([main(line) for line in {lines}])"
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.stdout.endswith("[0, 0, 0]\n"), done.stderr


def test_settling_is_of_models_with_a_state() -> None:
    """Guards --settling, which would print nothing for a model whose states are not compared."""
    plain = mull.Transformer(mull.TransformerConfig(vocab_size=5, d_model=8, n_heads=2, n_layers=1))
    with pytest.raises(ValueError, match="a Transformer has none: leave it out"):
        check_settling(plain, None)
