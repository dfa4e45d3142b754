"""Several files of a folder replaced at once: whatever ends the process, a reader finds all old files or all new ones.

    .writing-*/     the new files while they are written; nothing if the process ends here
    .committed/     the same folder under the name that makes them count, in one operation of the file system

After that the new files are moved to their places one by one, and what they make void is removed. A process that ends
in between leaves .committed/ to whoever reads or writes the folder next, who completes the moves first (`complete`).
Its order.json says which files go where, so that nothing else in the folder is touched. One process at a time does
this in a folder, where the file system has locks.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

WRITING, COMMITTED, ORDER = ".writing-", ".committed", "order.json"
OLD = 24 * 3600  # seconds after which a folder of new files is taken for a leftover where there are no locks


def replace_all(folder: Path, contents: Mapping[str, bytes], removed: Sequence[str] = ()) -> None:
    """Put all files in place or none; also after an error, and where the process is killed.

    Args:
        folder: the folder; made if need be.
        contents: the new files by their names. They are put in place in this order.
        removed: names of files that are removed with it.

    Raises:
        OSError: a file cannot be written, or a folder has its name. The old files are as they were.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder) as locked:
        if (folder / COMMITTED).exists():
            put_in_place(folder)
        sweep(folder, locked)
        check_no_folders(folder, (*contents, *removed))
        beside = Path(tempfile.mkdtemp(dir=folder, prefix=WRITING))
        try:
            order = {"place": list(contents), "remove": list(removed)}
            for name, data in {**contents, ORDER: json.dumps(order).encode()}.items():
                write_through(beside / name, data)
            sync_folder(beside)
            os.replace(beside, folder / COMMITTED)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
        put_in_place(folder)


def check_no_folders(folder: Path, names: Iterable[str]) -> None:
    """Raise an IsADirectoryError where a folder has the name of a file that is to be written."""
    for name in names:
        if (folder / name).is_dir():
            raise IsADirectoryError(f"{folder / name} is a folder, where a file is to be written; move it away")


def complete(folder: Path) -> None:
    """Complete a replacement that was cut short; readers of a folder call this first.

    Raises:
        ValueError: the folder cannot be written.
    """
    if not (folder / COMMITTED).exists():
        return
    try:
        with alone(folder):
            put_in_place(folder)
    except OSError as error:
        raise ValueError(
            f"{folder} was being saved when its process ended, and cannot be completed ({error.strerror}); "
            "open it once where it can be written, or copy it there"
        ) from error


def put_in_place(folder: Path) -> None:
    """Move the files of .committed/ to their places, and remove what they make void. It can be cut short anywhere."""
    committed = folder / COMMITTED
    sync_folder(folder)  # before the first old file goes, the new ones are known to the disk under this name
    for name, places in read_order(committed):
        if places:
            with suppress(FileNotFoundError):  # it stands already
                os.replace(committed / name, folder / name)
        else:
            (folder / name).unlink(missing_ok=True)
    sync_folder(folder)
    (committed / ORDER).unlink(missing_ok=True)
    with suppress(FileNotFoundError):
        committed.rmdir()


def read_order(committed: Path) -> list[tuple[str, bool]]:
    """What is to be done, in order: the name of a file, and whether it is put in place (or removed).

    Raises:
        ValueError: this is nothing that `replace_all` has left, such as a name outside the folder.
    """
    try:
        order = json.loads((committed / ORDER).read_text(encoding="utf-8"))
        steps = [(name, False) for name in order["remove"]] + [(name, True) for name in order["place"]]
        sound = not committed.is_symlink() and all(Path(name).name == name for name, _ in steps)
    except FileNotFoundError:  # everything stands; only the empty folder is left
        return []
    except (ValueError, KeyError, TypeError):
        sound = False
    if not sound:
        raise ValueError(f"{committed} is nothing that mull has left; remove it, or copy the folder from its source")
    return steps


def sweep(folder: Path, locked: bool) -> None:
    """Remove what killed processes have left; without a lock, only what is too old to be at work."""
    for leftover in folder.glob(f"{WRITING}*"):
        with suppress(OSError):
            if locked or time.time() - leftover.stat().st_mtime > OLD:
                shutil.rmtree(leftover)


@contextmanager
def workplace(folder: Path, prefix: str) -> Iterator[Path]:
    """A new folder in a folder, to work in for as long as it takes; it is removed at the end.

    Those of the same prefix that killed processes have left are removed first: a process holds the lock of its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        with alone(folder):  # nobody sweeps between the making of a place and the taking of its lock
            for leftover in folder.glob(f"{prefix}*"):
                with suppress(OSError), lock_of(leftover) as free:
                    if free or (free is None and time.time() - leftover.stat().st_mtime > OLD):
                        shutil.rmtree(leftover)
            place = Path(tempfile.mkdtemp(dir=folder, prefix=prefix))
            held.enter_context(lock_of(place))
        try:
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)


@contextmanager
def lock_of(folder: Path) -> Iterator[bool | None]:
    """Take the lock of a folder, if nobody has it; says whether, or None where the system has no such locks."""
    handle = None if fcntl is None else os.open(folder, os.O_RDONLY)
    try:
        taken = None
        if handle is not None:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                taken = True
            except BlockingIOError:
                taken = False
            except OSError:
                pass
        yield taken
    finally:
        if handle is not None:
            os.close(handle)


@contextmanager
def alone(folder: Path) -> Iterator[bool]:
    """Wait until no other process replaces files of the folder; gives False where the system has no such locks."""
    handle, locked = None, False
    try:
        with suppress(OSError):
            if fcntl is not None:
                handle = os.open(folder, os.O_RDONLY)
                fcntl.flock(handle, fcntl.LOCK_EX)
                locked = True
        yield locked
    finally:
        if handle is not None:
            os.close(handle)


def write_through(path: Path, data: bytes) -> None:
    """Write a new file and wait until it is on the disk."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk; where folders cannot be synchronised, nothing happens."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(handle)
    except OSError:  # some file systems do not synchronise folders
        pass
    finally:
        os.close(handle)
