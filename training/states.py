"""The files of a run's resumable state: written whole or not at all, checked when read, the previous one kept.

    last.ckpt       the state that a run goes on from
    previous.ckpt   the one before it, for the case that last.ckpt is damaged
    next.ckpt       a state that is complete, while what was logged up to it may not be on disk yet

A state is written beside its place, synchronised to the disk and only then renamed (`StateFiles`). It becomes last.ckpt
when the log has caught up with it (`keep_next`), so that going on from it loses nothing and repeats nothing. A state is
what torch.save writes, a zip archive, with the SHA-256 of all bytes before it as the archive's comment: the archive's
own sums do not cover its headers, and torch does not look at them.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import IO, Any

import torch
from lightning.fabric.plugins import CheckpointIO

from mull.checkpoints.replacing import sync_folder
from mull.checkpoints.store import CONFIG
from mull.training.saying import say

LAST, PREVIOUS, NEXT = "last.ckpt", "previous.ckpt", "next.ckpt"
PART = ".part"  # ends the name of a state that is being written
OLD = "it was saved by an earlier mull, which neither added a checksum nor said what run it belongs to"
MARK = b"sha256:"
COMMENT = len(MARK) + 64  # bytes of the archive's comment


class StateFiles(CheckpointIO):
    """How Lightning's strategies write and read states: one file each, whole, durable, with a checksum."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        if storage_options is not None:
            raise TypeError("states are local files, which have no storage options")
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + PART)
        try:
            write_checked(checkpoint, part)
        except (OSError, RuntimeError) as error:  # torch reports a failed write in its own words
            part.unlink(missing_ok=True)
            raise OSError(
                f"{path} cannot be written ({error}); the state before stays: make room, and type the same line again"
            ) from error
        os.replace(part, path)
        sync_folder(path.parent)

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any = "cpu",
        weights_only: bool | None = True,  # noqa: ARG002 (a state never runs code)
    ) -> dict[str, Any]:
        return torch.load(path, map_location=map_location or "cpu", weights_only=True)

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


def write_checked(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a state with its checksum, and wait until it is on the disk."""
    with open(path, "w+b") as file:
        hashing = HashedFile(file)
        torch.save(checkpoint, hashing)  # type: ignore[arg-type]  # torch asks for no more of it
        comment = MARK + hashing.digest.hexdigest().encode()
        file.seek(-2, os.SEEK_END)  # the length of the comment, which ends the archive and has been 0
        file.write(COMMENT.to_bytes(2, "little") + comment)
        file.flush()
        os.fsync(file.fileno())


class HashedFile:
    """A file being written from its beginning, with the SHA-256 of what was written."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def keep_next(folder: Path) -> None:
    """Make next.ckpt the last state and the last one the previous. A stop in between leaves what `settle` completes."""
    if (folder / LAST).exists():
        os.replace(folder / LAST, folder / PREVIOUS)
    os.replace(folder / NEXT, folder / LAST)
    sync_folder(folder)


def settle(folder: Path) -> None:
    """Bring the states of a folder into order after whatever ended the last process there; one process at a time.

    Leftovers of writes that were cut short are removed. A damaged last state gives way to the previous one, in one
    printed line.

    Raises:
        ValueError: no state is whole.
    """
    if (folder / PREVIOUS).exists() and not (folder / LAST).exists():  # ended inside `keep_next`
        whole = (folder / NEXT).exists() and damage(folder / NEXT) is None
        os.replace(folder / (NEXT if whole else PREVIOUS), folder / LAST)
    for leftover in (*folder.glob(f"*{PART}"), folder / NEXT):
        leftover.unlink(missing_ok=True)
    wrong = damage(folder / LAST) if (folder / LAST).exists() else None
    if wrong is None:
        return
    remedy = f"remove {folder} to train anew"
    if wrong == OLD and not (folder / PREVIOUS).exists():
        weights = f"start from its weights, --from {folder.parent} --output NEW"
        finish = weights if (folder.parent / CONFIG).exists() else "finish the run with that version"
        raise ValueError(f"{folder / LAST} cannot be gone on with: {OLD}; {finish}, or {remedy}")
    if not (folder / PREVIOUS).exists():
        raise ValueError(f"{folder / LAST} is damaged ({wrong}) and there is no previous state; {remedy}")
    also = damage(folder / PREVIOUS)
    if also is not None:
        raise ValueError(f"{folder / LAST} is damaged ({wrong}), and so is {PREVIOUS} ({also}); {remedy}")
    os.replace(folder / PREVIOUS, folder / LAST)
    say(f"{folder / LAST} was damaged ({wrong}): going on from the state before it")


def damage(path: Path) -> str | None:
    """What is wrong with the file of a state; None if it is whole."""
    digest = hashlib.sha256()
    try:
        size = path.stat().st_size
        content = size - COMMENT - 2  # what comes before the length of the comment
        if content < 0:
            return f"it has {size} bytes"
        with open(path, "rb") as file:
            while content:
                data = file.read(min(content, 1 << 20))
                digest.update(data)
                content -= len(data)
                if not data:
                    return "it is cut short"
            end = file.read()
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    digest.update(b"\0\0")
    expected = COMMENT.to_bytes(2, "little") + MARK + digest.hexdigest().encode()
    if end == expected:
        return None
    return OLD if end[-22:-18] == b"PK\5\6" and end[-2:] == b"\0\0" else "its checksum is wrong"


def read_state(path: Path) -> dict[str, Any]:
    """The contents of a whole state; tensors are read from the file when they are used."""
    return torch.load(path, weights_only=True, mmap=True, map_location="cpu")
