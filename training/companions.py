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


def end_with_parent() -> None:
    """From now on, end this process at once when the one that started it has ended; it has nothing to lose."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(EVERY)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="end-with-parent").start()
