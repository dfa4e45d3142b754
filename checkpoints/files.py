"""Files of a checkpoint, read as what strangers may have made.

Every byte of a folder that somebody else made comes in through this page. Whatever is wrong with it (a pipe or a device
in a file's place, endless size or nesting, a parser that panics) ends as one ValueError: short, on one line, without
control characters, and after seconds at most. Nothing here knows what a model is.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from io import BufferedReader
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

AGAIN = "copy the folder again from its source, or save the model again with mull.save"
MAX_LINE = 300  # characters of a message about a file that somebody else made
MAX_JSON, MAX_YAML, MAX_TOKENIZER = 4 << 20, 1 << 20, 64 << 20  # bytes; published tokenizers reach 35 MB
MAX_VALUES = 20_000  # of a YAML file: some two seconds of reading, without libyaml
DEEPEST = 100  # of them inside each other: parsers go down by calls, and would run out of stack
MAX_INTEGER = 2**63 - 1
MAX_GROWTH = 1_000
VOCABULARIES = ("BPE", "WordPiece", "WordLevel", "Unigram")  # types of tokenizer models, which replace nothing
FEW = 512  # the first tokens, which are tried too: bytes and signs
TRIAL = "A b, 1 é\n<end>"  # a text that every tokenizer can take: some fail only when they are used


# Words ----------------------------------------------------------------------------------------------------------------


def printable(text: str) -> str:
    """Text with control characters, and others that nobody sees, written as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown(value: object, limit: int = 80) -> str:
    """A value out of a file as text for a message or a page: on one line, printable, cut after `limit` characters."""
    text = printable((value if isinstance(value, str) else repr(value))[: limit + 1])
    return text if len(text) <= limit else text[: limit - 3] + "..."


def one_line(text: str, limit: int = MAX_LINE) -> str:
    """A message on one printable line. A longer one is cut in its middle: the place stands first, the remedy last."""
    text = printable(" ".join(text[: 100 * limit].split()))
    tail = min(limit // 2, 120)
    return text if len(text) <= limit else text[: limit - tail - 5] + " ... " + text[-tail:]


def damaged(path: Path, what: str, remedy: str = AGAIN) -> ValueError:
    """The error for a file that somebody else made: `path what; remedy`, where `what` may quote the file."""
    room = max(120, MAX_LINE - len(str(path)) - len(remedy) - 3)
    return ValueError(f"{printable(str(path))} {one_line(what, room)}; {remedy}")


@contextmanager
def trouble_of(path: Path, what: str, remedy: str = AGAIN) -> Iterator[None]:
    """Turn whatever a parser raises into a `damaged` error; `what` says what the file is not.

    A panic of the tokenizers library is a BaseException, which nothing else catches by accident.
    """
    try:
        yield
    except Exception as error:  # parsers of other libraries raise whatever they like: the file is at fault
        raise damaged(path, f"{what}: {error or type(error).__name__}", remedy) from error
    except BaseException as error:
        if not is_panic(error):
            raise
        raise damaged(path, f"{what}: {error}", remedy) from None


def is_panic(error: BaseException) -> bool:
    """Whether an error is a panic of a library in Rust."""
    return type(error).__name__ == "PanicException"


@contextmanager
def silent_panics() -> Iterator[None]:
    """Keep Rust from printing a traceback of its own: it writes to the process's standard error, past Python."""
    try:
        kept = os.dup(2)
    except OSError:  # there is no standard error
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


# Bytes ----------------------------------------------------------------------------------------------------------------


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading that must be a regular one, or a link to one: no pipe, device or folder.

    Raises:
        FileNotFoundError: nothing is there, or a link that leads nowhere.
        ValueError: something else is there, or it may not be opened.
    """
    try:
        regular = stat.S_ISREG(os.stat(path).st_mode)  # before it is opened: that alone moves some devices
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK) if regular else -1  # a pipe since then blocks nobody
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing; {AGAIN}") from None
    except OSError as error:
        raise damaged(path, f"cannot be opened ({error.strerror})") from error
    if not regular:
        raise damaged(path, "is no regular file")
    return os.fdopen(handle, "rb")


def path_of(given: str | Path, what: str) -> Path:
    """A path as it was given, with a home written out. Raises a ValueError for an empty one, which would stand for the
    working directory; it says `what` is empty."""
    if not str(given):
        raise ValueError(f"{what} is empty; name a path, or . for the working directory")
    return Path(given).expanduser()


def file_in_the_way(folder: Path) -> Path | None:
    """The file that stands where a folder is to be, or one of its parents; None where a folder can be."""
    return next((place for place in (folder, *folder.parents) if place.exists() and not place.is_dir()), None)


@contextmanager
def made(folder: Path) -> Iterator[None]:
    """Make a folder, with its parents; those that were made and are still empty at the end are removed again."""
    new = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for each in new:
            with suppress(OSError):  # something is in it
                each.rmdir()


def is_there(path: Path) -> bool:
    """Whether something stands in a file's place, also a link that leads nowhere, which reading then names."""
    return os.path.lexists(path)


def read_bytes(path: Path, limit: int) -> bytes:
    """The bytes of a regular file; a ValueError if there are more than `limit`."""
    with open_regular(path) as file:
        try:
            data = file.read(limit + 1)
        except OSError as error:
            raise damaged(path, f"cannot be read ({error.strerror})") from error
    if len(data) > limit:
        raise damaged(path, f"is longer than {limit:,} bytes, the most that such a file may have")
    return data


def checksum_of(path: Path) -> str:
    """SHA-256 of a regular file."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# JSON and YAML --------------------------------------------------------------------------------------------------------


def read_json(path: Path) -> dict[str, Any]:
    """The object of a JSON file. What JSON does not define is refused: keys that come twice, NaN, endless integers."""
    try:
        data = read_bytes(path, MAX_JSON)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path.parent} is no checkpoint folder: {path.name} is missing; {AGAIN}") from None
    with trouble_of(path, "cannot be read as JSON"):
        found = json.loads(data.decode("utf-8"), object_pairs_hook=checked)
    if not isinstance(found, dict):
        raise damaged(path, "must hold one JSON object")
    return found


def checked(pairs: Sequence[tuple[Any, Any]], endless: bool = False) -> dict[Any, Any]:
    """The dictionary of some pairs; a ValueError for a key that comes twice, and for numbers that none can be.

    Args:
        pairs: keys and values; mappings among the values have been checked.
        endless: whether infinite numbers are allowed, which YAML has.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise ValueError(f"the key {shown(twice)} is there twice")
    for key, value in pairs:
        check_numbers(key, value, endless)
    return found


def check_numbers(key: object, value: Any, endless: bool) -> None:
    """Raise a ValueError for a number that is not finite or needs more than 64 bits, also in lists."""
    if isinstance(value, list):
        for item in value:
            check_numbers(key, item, endless)
    if isinstance(value, float) and not endless and not math.isfinite(value):
        raise ValueError(f"{shown(key)} is {value}, no finite number")
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
        raise ValueError(f"{shown(key)} is an integer of more than 64 bits")


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping of a YAML file, without anchors, aliases and tags of Python."""
    import yaml  # only those who ask about a training pay for it

    data = read_bytes(path, MAX_YAML)
    with trouble_of(path, "cannot be read as YAML"):
        text = data.decode("utf-8")
        check_yaml(text)
        found = yaml.load(text, plain_loader(safe_loader(text)))
    if not isinstance(found, dict):
        raise damaged(path, "must hold one YAML mapping")
    return found


def check_yaml(text: str) -> None:
    """Raise a ValueError for what a file of a stranger may not hold, before anything is built of it.

    That is an anchor, by whose aliases a short file becomes an endless tree; more than `MAX_VALUES` values; or mappings
    and lists more than `DEEPEST` deep.
    """
    import yaml

    values = depth = 0
    for event in yaml.parse(text, safe_loader(text)):
        if getattr(event, "anchor", None) is not None:  # an alias has one too
            raise ValueError("it holds an anchor or an alias; write what it stands for")
        values += isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if values > MAX_VALUES:
            raise ValueError(f"it holds more than {MAX_VALUES:,} values")
        if depth > DEEPEST:
            raise ValueError(f"it is more than {DEEPEST} mappings and lists deep")


def safe_loader(text: str = "") -> Any:
    """The loader of PyYAML that builds plain values alone and can read a text: where possible that of libyaml, which is
    ten times as fast.

    It takes tabs, as in JSON, and refuses escapes of lone surrogates, which names of files can have: a text with
    escapes is left to the loader in Python.
    """
    import yaml

    return yaml.SafeLoader if "\\" in text else getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@cache
def plain_loader(base: Any) -> Any:
    """A loader of YAML like `base` that takes no key twice, and only numbers that a computer has."""

    class PlainLoader(base):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            del deep  # always
            keys = [self.construct_object(key, True) for key, _ in node.value]
            values = [self.construct_object(value, True) for _, value in node.value]
            return checked(list(zip(keys, values, strict=True)), endless=True)

    return PlainLoader


# Tokenizers -----------------------------------------------------------------------------------------------------------


def read_tokenizer(path: Path, checksum: str | None = None) -> Tokenizer:
    """The tokenizer of a tokenizer.json, tried on a short text, without the truncation and padding stored with it.

    Args:
        path: the file.
        checksum: SHA-256 that the file must have; None takes any.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged or no tokenizer, or cannot be used: some faults show when it encodes.
    """
    data = read_bytes(path, MAX_TOKENIZER)
    if checksum is not None and hashlib.sha256(data).hexdigest() != checksum:
        raise damaged(path, "is damaged: its checksum is not the one in config.json")
    with trouble_of(path, "is no tokenizer"), silent_panics():
        text = data.decode("utf-8")
        parts = json.loads(text, object_pairs_hook=checked)
        if isinstance(parts, dict) and growth(list(parts.values())) > MAX_GROWTH:
            raise ValueError(f"its replacements may lengthen a text more than {MAX_GROWTH:,} times")
        tokenizer = Tokenizer.from_str(text)
        tokenizer.no_truncation()  # would cut texts silently
        tokenizer.no_padding()  # may ask for any length
        for special in (True, False):
            tokenizer.decode(tokenizer.encode(TRIAL, add_special_tokens=special).ids)
        for token in range(FEW):  # streams decode tokens one by one
            tokenizer.decode([token])
    return tokenizer


def growth(node: Any) -> int:
    """How many times longer a part of a tokenizer may make a text; parts that lie beside each other multiply."""
    if isinstance(node, list):
        return math.prod(growth(part) for part in node if isinstance(part, dict | list))
    if node.get("type") in VOCABULARIES:  # the words themselves add nothing
        return max([1, *(len(value) for value in node.values() if isinstance(value, str))])
    added = [len(node[name]) for name in ("content", "prepend") if isinstance(node.get(name), str) and "type" in node]
    return max([1, *(1 + length for length in added)]) * growth(list(node.values()))
