"""Packed text: documents tokenized once into one binary file per split, then read by memory map.

The held-out split is chosen by a hash of each document's content, so the same text is never in both splits, whatever
file or place it occurs in, and renaming or adding files does not move a document to the other split. A corpus may be
larger than memory: the files are read as streams when it is built, and mapped when it is used.

A cached corpus is a folder: train.bin and validation.bin (token ids, little-endian uint16 or uint32, each document
followed by the end token) and corpus.json (counts of tokens, bytes and documents).
"""

import json
import os
import shutil
from hashlib import blake2b, sha256
from pathlib import Path
from typing import BinaryIO, Literal, get_args

import numpy as np
from tokenizers import Tokenizer

from mull.checkpoints.replacing import workplace
from mull.inference.text import encode_documents
from mull.training.data.documents import find_files, read_documents
from mull.training.data.streams import Stream
from mull.training.data.tokenizer import stop_tokens_of, vocab_size_of

TextSplit = Literal["train", "validation"]
FORMAT = 2  # part of the cache key: raise it when the same settings would give other files
UNFINISHED = "unfinished-"  # begins the name of a corpus that is being built
ENCODE_AT_ONCE = 1 << 20  # characters of text that are tokenized together


class Corpus:
    """A corpus in the cache, opened for reading. `Corpus.build` makes one."""

    def __init__(self, folder: Path) -> None:
        about = json.loads((folder / "corpus.json").read_text())
        self._counts: dict[str, dict[str, int]] = about["splits"]
        # An empty file cannot be mapped.
        self._tokens = {
            split: np.memmap(folder / f"{split}.bin", about["dtype"], "r") if counts["tokens"] else np.empty(0, "<u2")
            for split, counts in self._counts.items()
        }

    @classmethod
    def build(
        cls, paths: list[str], fields: list[str] | None, tokenizer: Tokenizer, held_out: float, cache: str
    ) -> "Corpus":
        """The corpus of these files under these settings: from the cache, or tokenized into it.

        Args:
            paths: Files (.txt, .jsonl) or folders.
            fields: Fields of a .jsonl record that make its document, joined by line ends; .txt files need none.
            tokenizer: Tokenizer of text; it must have an end token.
            held_out: Expected share of the documents in the validation split, in (0, 1].
            cache: Folder that holds cached corpora; it is made if it is missing.

        Raises FileNotFoundError for a missing path, ValueError for anything else that is wrong; in both cases nothing
        is left in the cache.
        """
        if not 0 < held_out <= 1:
            raise ValueError(f"held_out is {held_out}: it must be above 0 and at most 1, for example 0.05")
        files = find_files(paths)
        root = Path(cache).expanduser()
        folder = root / _key(files, fields, tokenizer, held_out)
        if not _is_whole(folder):
            shutil.rmtree(folder, ignore_errors=True)
            with workplace(root, UNFINISHED) as work:
                new = work / "corpus"
                new.mkdir()
                _write(new, files, fields, tokenizer, held_out)
                _move(new, folder)
        return cls(folder)

    def tokens(self, split: TextSplit) -> int:
        """The number of tokens in a split, end tokens included."""
        return self._counts[split]["tokens"]

    def bytes(self, split: TextSplit) -> int:
        """The number of UTF-8 bytes of text in a split. Bits per byte = loss in nats * tokens / bytes / ln 2."""
        return self._counts[split]["bytes"]

    def content_key(self) -> str:
        """SHA-256 of all tokens of both splits: equal for equal text in the same order, wherever its files lie."""
        digest = sha256()
        for split in get_args(TextSplit):
            tokens = self._tokens[split]
            digest.update(repr((split, tokens.dtype.str, len(tokens))).encode())
            digest.update(np.ascontiguousarray(tokens).data)
        return digest.hexdigest()

    def documents(self, split: TextSplit) -> int:
        """The number of documents (records, or blocks of text files) in a split."""
        return self._counts[split]["documents"]

    def windows(self, split: TextSplit, length: int) -> int:
        """The number of windows of `length` predictions that a split has room for, one after the other."""
        return max(0, (self.tokens(split) - 1) // length)

    def window(self, split: TextSplit, index: int, length: int) -> np.ndarray:
        """Tokens (length + 1,) int64 of window `index`: `length` tokens to read, with the token that follows each.

        The last token of a window is the first of the next one, so all windows together predict every token once, but
        for the first. Raises IndexError for a window that is not there.
        """
        if not 0 <= index < self.windows(split, length):
            raise IndexError(f"window {index} of {self.windows(split, length)} in the {split} split")
        return self._read(split, index * length, length + 1)

    def random_window(self, split: TextSplit, seed: int, index: int, length: int) -> np.ndarray:
        """Tokens (length + 1,) int64 from a random place in a split, a function of (split, seed, index, length)."""
        return self.random_windows(split, seed, range(index, index + 1), length)[0]

    def random_windows(self, split: TextSplit, seed: int, indices: range, length: int) -> np.ndarray:
        """Tokens (B, length + 1) int64: `random_window` of each of B indices. Raises ValueError for a short split."""
        self.require_window(split, length)
        stream = Stream("text", split, seed, length)
        places = [int(stream.at(index).integers(self.tokens(split) - length)) for index in indices]
        return np.stack([self._read(split, place, length + 1) for place in places])

    def require_window(self, split: TextSplit, length: int) -> None:
        """Raises ValueError if a split has fewer than length + 1 tokens."""
        if not self.windows(split, length):
            raise ValueError(
                f"the {split} split has {self.tokens(split)} tokens, fewer than one window of {length + 1}: give more "
                f"text, a smaller length{', or a larger held_out' if split == 'validation' else ''}"
            )

    def _read(self, split: TextSplit, start: int, count: int) -> np.ndarray:
        return np.asarray(self._tokens[split][start : start + count], dtype=np.int64)


def split_of(document: bytes, held_out: float) -> TextSplit:
    """The split of a document, a function of its content; `held_out` is the probability of validation."""
    draw = int.from_bytes(blake2b(document, digest_size=8).digest(), "little") / 2**64
    return "validation" if draw < held_out else "train"


class _Packer:
    """Collects the documents of one split and appends them, tokenized, to its file."""

    def __init__(self, file: BinaryIO, tokenizer: Tokenizer, dtype: str) -> None:
        self.file, self.tokenizer, self.dtype = file, tokenizer, dtype
        self.end = stop_tokens_of(tokenizer)[0]
        self.waiting: list[str] = []
        self.characters = 0  # of the waiting documents
        self.counts = {"tokens": 0, "bytes": 0, "documents": 0}

    def add(self, document: str, size: int) -> None:
        """Add one document of `size` bytes to the split."""
        self.waiting.append(document)
        self.characters += len(document)
        self.counts["bytes"] += size
        self.counts["documents"] += 1
        if self.characters >= ENCODE_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Tokenize the documents that were added and are not in the file yet, and append them to it."""
        for document in encode_documents(self.tokenizer, self.waiting):  # read as prompts are
            ids = np.array([*document, self.end], dtype=self.dtype)
            self.file.write(ids.tobytes())
            self.counts["tokens"] += len(ids)
        self.waiting, self.characters = [], 0


def _write(folder: Path, files: list[Path], fields: list[str] | None, tokenizer: Tokenizer, held_out: float) -> None:
    """Tokenize a corpus into a folder: train.bin, validation.bin and, last, corpus.json with type and counts.

    Args:
        folder: an empty folder that is there.
        files: of the documents, read in this order.
        fields: of records; see `read_documents`.
        tokenizer: whose ids are written, 2 bytes each where the vocabulary has at most 65,536 and else 4.
        held_out: share of the documents that validation gets, by a digest of their text.

    Raises:
        ValueError: no file holds any text.
    """
    dtype = "<u2" if vocab_size_of(tokenizer) <= 1 << 16 else "<u4"
    with (folder / "train.bin").open("wb") as train, (folder / "validation.bin").open("wb") as validation:
        packers = {"train": _Packer(train, tokenizer, dtype), "validation": _Packer(validation, tokenizer, dtype)}
        for file in files:
            for document in read_documents(file, fields):
                content = document.encode()
                packers[split_of(content, held_out)].add(document, len(content))
        for packer in packers.values():
            packer.flush()
    splits = {split: packer.counts for split, packer in packers.items()}
    if not any(counts["documents"] for counts in splits.values()):
        raise ValueError(f"the corpus is empty: no text in {', '.join(str(file) for file in files)}")
    (folder / "corpus.json").write_text(json.dumps({"dtype": dtype, "splits": splits}, indent=2))


def _key(files: list[Path], fields: list[str] | None, tokenizer: Tokenizer, held_out: float) -> str:
    """The name of a corpus in the cache. It changes with the path, size or time of any file, and with any setting."""
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return blake2b(repr((FORMAT, stats, fields, held_out, tokenizer.to_str())).encode(), digest_size=16).hexdigest()


def _is_whole(folder: Path) -> bool:
    """Whether the cache holds a corpus whose files are as long as its corpus.json says."""
    try:
        about = json.loads((folder / "corpus.json").read_text())
        width = np.dtype(about["dtype"]).itemsize
        sizes = {split: (folder / f"{split}.bin").stat().st_size for split in get_args(TextSplit)}
        return all(size == width * about["splits"][split]["tokens"] for split, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _move(new: Path, folder: Path) -> None:
    """Move a finished corpus to its place in the cache in one operation."""
    try:
        os.rename(new, folder)
    except OSError:
        if not _is_whole(folder):  # unless another process built the same one meanwhile
            raise
