"""Files become documents: nothing lost, cut where the text says, every fault named with its place."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mull.training.data import documents
from mull.training.data.documents import find_files, read_documents

LINES = [f"line {i} of a text that is long enough to be cut, {i * i}\n" for i in range(3000)]


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet=st.sampled_from("ab\n\r é€𝄞"), max_size=120))
def test_blocks_join_to_the_file(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    """Any text, line ends or none, characters of 1 to 4 bytes at every limit: blocks lose and split nothing."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("MIN_BLOCK", 6), ("MEAN_REST", 8), ("MAX_BLOCK", 16)):
            patch.setattr(documents, name, value)
        file = tmp_path_factory.getbasetemp() / "blocks.txt"
        file.write_bytes(text.encode())
        blocks = list(read_documents(file, None))
    assert "".join(blocks) == text
    assert all(0 < len(block.encode()) <= 16 for block in blocks)
    assert all(block.endswith("\n") or len(block.encode()) >= 16 - 4 for block in blocks[:-1])


def test_blocks_are_about_4_kib_and_end_with_lines(tmp_path: Path) -> None:
    """The size the module promises, so that a single file has enough documents to hold some out."""
    file = tmp_path / "a.txt"
    file.write_text("".join(LINES))
    blocks = list(read_documents(file, None))
    mean = sum(map(len, blocks)) / len(blocks)
    assert 3000 < mean < 5500 and all(block.endswith("\n") for block in blocks)


def test_moved_text_is_cut_alike(tmp_path: Path) -> None:
    """Two versions of a file share nearly all blocks, so the held-out ones of one are not trained on in the other."""
    (tmp_path / "a.txt").write_text("".join(LINES))
    (tmp_path / "b.txt").write_text("".join(["A new first line.\n", *LINES[:1000], "And another.\n", *LINES[1000:]]))
    old, new = (set(read_documents(tmp_path / name, None)) for name in ("a.txt", "b.txt"))
    assert len(old - new) <= 4 < len(old & new)


def test_folders_are_searched_in_order_and_files_taken_once(tmp_path: Path) -> None:
    """Recursive, sorted, other kinds left out, the same file under two names read once."""
    for name in ("b.txt", "a/z.JSONL", "a/b.txt", "a/picture.png", "c.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    found = find_files([str(tmp_path), str(tmp_path / "a" / ".." / "b.txt")])
    assert [str(file.relative_to(tmp_path.resolve())) for file in found] == ["a/b.txt", "a/z.JSONL", "b.txt"]


def test_missing_and_useless_paths_are_named(tmp_path: Path) -> None:
    """A path that is not there, a kind nobody reads, a folder without text, no path at all."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.pdf").write_text("x")
    with pytest.raises(FileNotFoundError, match=r"no such file or folder: .*gone.txt"):
        find_files([str(tmp_path / "gone.txt")])
    with pytest.raises(ValueError, match=r"a.pdf is no .jsonl or .txt file"):
        find_files([str(tmp_path / "a.pdf")])
    with pytest.raises(ValueError, match=r"the folder .*empty holds no .jsonl or .txt file"):
        find_files([str(tmp_path / "empty")])
    with pytest.raises(ValueError, match="no paths given"):
        find_files([])


def test_records_join_their_fields(tmp_path: Path) -> None:
    """Fields in the order asked for, blank lines and empty texts skipped."""
    file = tmp_path / "a.jsonl"
    file.write_text('{"q": "1+1?", "a": "2"}\n\n{"q": "", "a": ""}\n{"a": "ä", "q": "x", "id": 3}')
    assert list(read_documents(file, ["q", "a"])) == ["1+1?\n2", "\n", "x\nä"]
    assert list(read_documents(file, ["a"])) == ["2", "ä"]


BAD_RECORDS = {
    "not json": ("line 2 is not JSON", ["q"]),
    "[1]": ("line 2 is not a JSON object but list", ["q"]),
    '{"question": "x", "id": 1}': ("line 2 has no field 'q': its fields are question, id", ["q"]),
    "{}": (r"line 2 has no field 'q': its fields are \(none\)", ["q"]),
    '{"q": 7}': ("line 2: field 'q' is int, not text", ["q"]),
    r'{"q": "\ud800"}': ("line 2 holds an unpaired surrogate", ["q"]),
}


@pytest.mark.parametrize("record", BAD_RECORDS)
def test_bad_records_are_named_by_file_and_line(tmp_path: Path, record: str) -> None:
    """Among a million records, the user has to find this one."""
    message, fields = BAD_RECORDS[record]
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"q": "fine"}) + "\n" + record + "\n")
    with pytest.raises(ValueError, match=f"a.jsonl, {message}") as error:
        list(read_documents(file, fields))
    assert "\n" not in str(error.value)


def test_fields_have_to_be_chosen(tmp_path: Path) -> None:
    """Which fields are text cannot be guessed; the message shows the choice."""
    file = tmp_path / "a.jsonl"
    file.write_text('{"question": "x", "answer": "y"}')
    with pytest.raises(ValueError, match=r"say which fields .*\(its fields are question, answer"):
        list(read_documents(file, None))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_text_that_is_not_utf8_is_named_by_byte(tmp_path: Path, name: str) -> None:
    """The offset is that of the file, not of the block or line in which it was found."""
    good = "".join(f'{{"q": "fine {i}"}}\n' for i in range(2000))
    (tmp_path / name).write_bytes(good.encode() + b'{"q": "caf\xe9"}\n' + good.encode())
    with pytest.raises(ValueError, match=rf"{name} is not UTF-8 text: byte {len(good) + 10} is 0xe9 .*convert"):
        list(read_documents(tmp_path / name, ["q"]))


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    """Whatever the system's reason; here, a folder in the place of a file."""
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(ValueError, match=r"cannot read .*a.txt: "):
        list(read_documents(tmp_path / "a.txt", None))


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    """Of either kind of file; places in errors still count it."""
    mark = b"\xef\xbb\xbf"
    (tmp_path / "a.txt").write_bytes(mark + b"one\ntwo")
    (tmp_path / "a.jsonl").write_bytes(mark + b'{"text": "one"}')
    assert list(read_documents(tmp_path / "a.txt", None)) == ["one\ntwo"]
    assert list(read_documents(tmp_path / "a.jsonl", ["text"])) == ["one"]
    for name in ("bad.txt", "bad.jsonl"):
        (tmp_path / name).write_bytes(mark + b"\xe9")
        with pytest.raises(ValueError, match="byte 3 is 0xe9"):
            list(read_documents(tmp_path / name, ["text"]))
