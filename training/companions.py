"""Several processes that train together: one that was started by another does not outlive it.

What is trained ends by itself where a process is lost, since the others wait for it in vain and are told so. Before
they have met they may wait for half an hour, and after they have parted one could still be at work; so a further
process watches the one that started it.
"""

from __future__ import annotations

import os
import threading
import time

EVERY = 0.5  # seconds between two looks
FIRST = "MULL_FIRST_PROCESS"  # variable of the environment: the number of the process that starts the others


def come_first() -> None:
    """Let further processes, which are started from now on, know this one."""
    os.environ[FIRST] = str(os.getpid())


def forget_first() -> None:
    """Let further processes be those of another run; another program that starts such would give its own number."""
    os.environ.pop(FIRST, None)


def end_with_first() -> None:
    """From now on, end this process at once when the one that started it has ended; it has nothing to lose.

    That is the first one, or what has started all of them, such as torchrun.
    """
    started_by = int(os.environ.get(FIRST) or os.getppid())

    def watch() -> None:
        while os.getppid() == started_by:
            time.sleep(EVERY)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="end-with-first").start()
