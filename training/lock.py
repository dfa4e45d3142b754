"""One run a folder at a time: a lock that ends with the process that holds it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mull.checkpoints.files import made

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = "lock"


@contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """Hold the lock of a run's folder; folders that were made for it and are still empty at the end are removed.

    The system's own file lock is used where it works, since it ends with its process however that ends. Elsewhere the
    file of the lock names its process by host, number and start time, and the lock of a dead one is taken over.

    Raises:
        ValueError: another process trains in this folder.
    """
    place = folder / "trainer"
    with made(place):
        held = take_by_system(place / LOCK)
        if held is None:
            take_by_name(place / LOCK)
        try:
            yield
        finally:
            (place / LOCK).unlink(missing_ok=True)  # while it is held: nobody can have taken it
            if held is not None:
                os.close(held)


def take_by_system(file: Path) -> int | None:
    """Take the lock by `flock`; return the open file, or None where the file system has no such locks."""
    while fcntl is not None:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 1000, 0).decode(errors="replace")
            os.close(handle)
            raise refusal(file, holder) from None
        except OSError:
            os.close(handle)
            return None
        try:
            current = os.path.samestat(os.fstat(handle), os.stat(file))
        except FileNotFoundError:
            current = False
        if current:
            os.ftruncate(handle, 0)
            os.pwrite(handle, this_process().encode(), 0)
            return handle
        os.close(handle)  # its holder has just removed the file that we opened
    return None


def take_by_name(file: Path) -> None:
    """Take the lock by making its file, which names this process; the file of a process that is gone is replaced."""
    ours = file.with_name(f"{LOCK}-{uuid.uuid4().hex}")
    ours.write_text(this_process(), encoding="utf-8")
    try:
        while True:
            try:
                os.link(ours, file)  # fails where the file exists
                return
            except FileExistsError:
                pass
            try:
                holder = file.read_text(encoding="utf-8")
            except FileNotFoundError:
                continue
            if is_alive(holder):
                raise refusal(file, holder)
            aside = file.with_name(f"{LOCK}-{uuid.uuid4().hex}")
            with contextlib.suppress(FileNotFoundError):
                os.rename(file, aside)
                if aside.read_text(encoding="utf-8") != holder:  # somebody else has replaced it before us
                    os.link(aside, file)
                aside.unlink()
    finally:
        ours.unlink()


def refusal(file: Path, holder: str) -> ValueError:
    """The error of a folder in which another process trains."""
    words = holder.split()
    who = f"process {words[1]} on {words[0]}" if len(words) >= 2 else "another process"
    return ValueError(f"{file.parent.parent} is being trained by {who}; wait for it, end it, or pass another --output")


def this_process() -> str:
    """Host, number and start time of this process."""
    return f"{socket.gethostname()} {os.getpid()} {start_time(os.getpid())}"


def is_alive(holder: str) -> bool:
    """Whether the process that a lock names still runs; one on another host, which cannot be asked, is taken to run."""
    words = holder.split(maxsplit=2)
    if len(words) < 2 or not words[1].isdigit():
        return False  # its maker ended while writing
    if words[0] != socket.gethostname():
        return True
    started = start_time(int(words[1]))
    return bool(started) and started == (words[2] if len(words) > 2 else started)


def start_time(process: int) -> str:
    """When a process of this host started, as the system says it; empty if there is none."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        pass
    try:  # without /proc, as on macOS
        said = subprocess.run(["ps", "-o", "lstart=", "-p", str(process)], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return " ".join(said.stdout.split())
