"""From files to documents: .txt and .jsonl files, given one by one or as folders, are read as streams.

A .jsonl record is one document. A .txt file has no records, and held-out text is chosen by document, so it is cut into
blocks of about 4 KiB at line ends. *Which* line ends, the text itself decides (content-defined chunking, Muthitacharoen
et al., "A low-bandwidth network file system", 2001): a passage that two files share, or that moved within its file, is
cut alike in both places, so its blocks are recognised as the same text.
"""

import json
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

from mull.training.data.corpora import find

KINDS = (".jsonl", ".txt")
MIN_BLOCK = 2048  # bytes; no block but the last is shorter
MEAN_REST = 2048  # bytes; a line of n bytes ends its block with probability n / MEAN_REST from there on
BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # begins some files, and is no text
MAX_BLOCK = 65536  # bytes; text without line ends is cut here


def find_files(paths: list[str]) -> list[Path]:
    """The files that `paths` name: files as given, folders searched recursively in sorted order, each file once.

    Public files are found in the data folders (corpora.py).

    Raises FileNotFoundError for a missing path, ValueError if a path holds no file of a known kind.
    """
    files: dict[Path, None] = {}  # an ordered set
    for name in paths:
        path = find(name).resolve()
        found = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file() and is_known(f))
        if not found or not is_known(found[0]):
            where = f"{name} is" if path.is_file() else f"the folder {name} holds"
            raise ValueError(f"{where} no {' or '.join(KINDS)} file: name one, or convert the text")
        files.update(dict.fromkeys(found))
    if not files:
        raise ValueError(f"no paths given: name {' or '.join(KINDS)} files or folders of those")
    return list(files)


def is_known(file: Path) -> bool:
    """Whether a file is of a kind that is read here, by its name."""
    return file.suffix.lower() in KINDS


def read_documents(file: Path, fields: list[str] | None) -> Iterator[str]:
    """The documents of one file in order, none of them empty.

    Args:
        file: A .txt or .jsonl file.
        fields: The fields of a .jsonl record whose texts, joined by line ends, are its document; unused for .txt files.

    Raises ValueError, which names the file and the place in it, for text that cannot be read.
    """
    try:
        with file.open("rb") as stream:
            if stream.read(len(BYTE_ORDER_MARK)) != BYTE_ORDER_MARK:
                stream.seek(0)
            if file.suffix.lower() == ".jsonl":
                yield from _records(file, stream, fields)
            else:
                yield from _blocks(file, stream)
    except OSError as error:
        raise ValueError(f"cannot read {file}: {error.strerror}") from error


def _blocks(file: Path, stream: BinaryIO) -> Iterator[str]:
    """A text file in blocks whose concatenation is the file."""
    block, start = b"", stream.tell()
    while line := stream.readline(MAX_BLOCK - len(block)):
        block += line
        complete = line.endswith(b"\n")
        if len(block) >= MAX_BLOCK or (complete and len(block) >= MIN_BLOCK and _ends_block(line)):
            whole = len(block) if complete else _last_character(block)
            yield _decode(block[:whole], file, start)
            block, start = block[whole:], start + whole
    if block:
        yield _decode(block, file, start)


def _ends_block(line: bytes) -> bool:
    """Whether a block ends after this line: with probability len(line) / MEAN_REST, by a hash of the line alone."""
    return int.from_bytes(blake2b(line, digest_size=8).digest(), "little") * MEAN_REST < len(line) << 64


def _last_character(block: bytes) -> int:
    """The index of the byte where the last UTF-8 character begins, complete or not; a cut there splits no character."""
    end = len(block) - 1
    while end > len(block) - 4 and block[end] & 0xC0 == 0x80:  # back over continuation bytes to a leading byte
        end -= 1
    return end


def _records(file: Path, stream: BinaryIO, fields: list[str] | None) -> Iterator[str]:
    """The documents of a file of JSON lines, one a line; empty lines are skipped.

    Args:
        file: its name, for messages.
        stream: its bytes, behind a byte order mark if there is one.
        fields: of each record that make up its text, joined by line breaks.

    Raises:
        ValueError: a line is not UTF-8, not JSON, or no record with these fields; it names file and line.
    """
    start = len(BYTE_ORDER_MARK) if stream.tell() else 0
    for number, line in enumerate(stream, 1):
        text = _decode(line, file, start)
        start += len(line)
        if not text.strip():
            continue
        try:
            record = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{file}, line {number} is not JSON: {error}") from error
        if document := _document(record, fields, f"{file}, line {number}"):
            yield document


def _document(record: Any, fields: list[str] | None, place: str) -> str:
    """The text of a record: its fields of these names, joined by line breaks.

    Args:
        record: what the JSON held.
        fields: the names; None or none is refused, since nobody has said what the text is.
        place: file and line, for messages.

    Raises:
        ValueError: it is no JSON object, lacks a field, or holds something other than text that UTF-8 can write.
    """
    if not isinstance(record, dict):
        raise ValueError(f"{place} is not a JSON object but {type(record).__name__}: fields have to be named")
    there = f"its fields are {', '.join(record) or '(none)'}"
    if not fields:
        raise ValueError(f"{place}: say which fields of a record are its text ({there})")
    for field in fields:
        if field not in record:
            raise ValueError(f"{place} has no field {field!r}: {there}")
        if not isinstance(record[field], str):
            raise ValueError(f"{place}: field {field!r} is {type(record[field]).__name__}, not text: {there}")
    document = "\n".join(record[field] for field in fields)
    try:
        document.encode()
    except UnicodeEncodeError as error:  # JSON can spell half a surrogate pair, which is no character
        raise ValueError(f"{place} holds an unpaired surrogate and cannot be written as UTF-8: mend it") from error
    return document


def _decode(text: bytes, file: Path, start: int) -> str:
    """A piece of a file as text. Raises ValueError where it is not UTF-8, with the place of the byte in the file.

    Args:
        text: the bytes.
        file: its name, for messages.
        start: the bytes of the file before this piece.
    """
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file} is not UTF-8 text: byte {start + error.start} is 0x{text[error.start]:02x} ({error.reason}); "
            "convert the file to UTF-8"
        ) from error
