"""Whose turn it is. One thread has all models; lanes take turns, an iteration at a time.

    v_l = (seconds that lane l had) / w_l,   w_l = 1 / sqrt(iterations of the lane)       least v goes next

This is fair queueing by what a turn really took. A lane that comes back from idleness starts at the v of the present,
so that nobody saves up. The weights let shallow requests through: beside lanes of 64 iterations one of 1 has eight
parts of nine, and deep lanes still always move. A deep step is left in the middle, between two iterations, when it is
not its turn; so nobody waits for longer than an iteration of somebody else's batch, or of a piece of a prompt.

What does not fit yet waits: rows of a batch are limited, and so are the bytes that the caches of all rows may come to.
A prompt that does not fit holds up those of its own lane only, and the last quarter of the bytes is for small ones.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any

import torch

from mull.inference.serve.lanes import MENDABLE, Reading, Turn, Writing
from mull.inference.serve.limits import Limits
from mull.inference.serve.metrics import Metrics
from mull.inference.serve.refusals import Refused
from mull.inference.serve.rows import Row

FIRST = 16.0  # how much more a prompt weighs than its lane: rows that come soon share more batches
SMALL = 64  # a prompt that takes less than this part of all bytes is small


OVER = Refused("the server is shutting down; ask again", status=503)


class Lane:
    """The rows and the prompts of one lane, and what they may come to."""

    def __init__(self, depth: int, metrics: Metrics, now: float) -> None:
        weight = depth**-0.5
        self.depth = depth
        self.writing = Writing(weight, metrics)
        self.reading = Reading(FIRST * weight, self.writing)
        self.turns: tuple[Turn, Turn] = (self.reading, self.writing)
        self.writing.spent = self.reading.spent = now

    @property
    def rows(self) -> list[Row]:
        """Those that have a place."""
        both = [*self.writing.rows, *(row for row, _ in self.writing.joining)]
        return [row for row in (*both, *(row for rows in self.reading.prompts for row in rows)) if not row.done]

    def bytes_with(self, more: Sequence[Row]) -> int:
        """What the caches of these and more rows may come to: as wide as the longest of them."""
        rows = [*self.rows, *more]
        if not rows:
            return 0
        each = rows[0].served.bytes_per_position(self.depth)
        return len(rows) * max(row.longest + 1 for row in rows) * each


class Schedule:
    """See the head of this file.

    Args:
        limits: of the server.
        metrics: what is counted.
        clock: seconds; tests give their own.
    """

    def __init__(self, limits: Limits, metrics: Metrics, clock: Callable[[], float] = time.perf_counter) -> None:
        self.limits, self.metrics, self.clock = limits, metrics, clock
        self.lanes: dict[tuple[Any, ...], Lane] = {}
        self.waiting: deque[list[Row]] = deque()  # prompts, each with its rows
        self.inbox: SimpleQueue[list[Row] | None] = SimpleQueue()
        self.now = 0.0  # v of the lane that had the last turn
        self.ending = False
        self.stale = True  # places may have come free, or prompts come
        self.door = threading.Lock()  # nothing comes in behind the end
        self.thread = threading.Thread(target=self.run, name="mull-thinking", daemon=True)

    # What other threads call ------------------------------------------------------------------------------------------

    def start(self) -> None:
        self.thread.start()

    def submit(self, rows: list[Row]) -> None:
        """Answer a prompt; its rows say the rest."""
        with self.door:
            if not self.ending:
                self.inbox.put(rows)
                return
        for row in rows:
            row.fail(OVER)

    def wake(self) -> None:
        """Look at once for rows that have been cancelled."""
        self.inbox.put([])

    def close(self, seconds: float = 5.0) -> None:
        """End all rows and the thread."""
        with self.door:
            self.ending = True
            self.inbox.put(None)
        if self.thread.is_alive():
            self.thread.join(seconds)

    def check_fits(self, rows: Sequence[Row]) -> None:
        """Raise Refused for a prompt that could never be answered within the limits."""
        asked = Lane(rows[0].sharing.depth, self.metrics, 0.0).bytes_with(rows)
        if asked > self.share:
            raise Refused(
                f"the keys and values of {len(rows)} answers of up to {rows[0].longest} positions at "
                f"{rows[0].wish.iterations} iterations may take {asked / 2**20:,.0f} MiB, above the limit of "
                f"{self.share / 2**20:,.0f}; ask for fewer iterations or tokens"
            )

    # The thread -------------------------------------------------------------------------------------------------------

    @property
    def share(self) -> int:
        """Bytes that others than small prompts may fill."""
        return self.limits.cache_bytes * 3 // 4

    def run(self) -> None:
        """Take turns until the end, which is told to everybody, also where it is an error that nobody foresaw."""
        try:
            with torch.inference_mode():
                while not self.ending:
                    self.receive(self.busy or self.stale)
                    if not self.ending:
                        if self.stale:
                            self.admit()
                        self.turn()
        finally:
            with self.door:
                self.ending = True
            self.receive(busy=True)
            self.end(OVER)

    @property
    def busy(self) -> bool:
        return bool(self.waiting) or any(turn.busy for lane in self.lanes.values() for turn in lane.turns)

    def receive(self, busy: bool) -> None:
        """Take what has come; wait for it where there is nothing else to do."""
        try:
            came = self.inbox.get(block=not busy)
            while True:
                self.stale = True
                if came:
                    self.waiting.append(came)
                came = self.inbox.get_nowait()
        except Empty:
            return

    def admit(self) -> None:
        """Give places to prompts that wait, in their order within each lane, and forget lanes that have nothing."""
        self.lanes = {
            key: lane for key, lane in self.lanes.items() if any(turn.busy for turn in lane.turns)
        }  # a lane that comes again starts at the present
        filled = sum(lane.bytes_with(()) for lane in self.lanes.values())
        held_up: set[tuple[Any, ...]] = set()
        still = deque[list[Row]]()
        for rows in self.waiting:
            rows = [row for row in rows if not row.done]
            if not rows:
                continue
            key = rows[0].sharing.key
            lane = self.lanes.get(key) or Lane(rows[0].sharing.depth, self.metrics, self.now)
            there, before, after = len(lane.rows), lane.bytes_with(()), lane.bytes_with(rows)
            small = after - before <= self.limits.cache_bytes // SMALL
            room = self.limits.cache_bytes if small else self.share
            if key in held_up or there + len(rows) > self.limits.max_rows or filled + after - before > room:
                held_up.add(key)
                still.append(rows)
                continue
            filled += after - before
            lane.reading.prompts.append(rows)
            self.lanes[key] = lane
        self.waiting, self.stale = still, False
        self.metrics.waiting = sum(map(len, still))
        self.metrics.writing = sum(len(lane.rows) for lane in self.lanes.values())
        self.metrics.cache_bytes = filled

    def turn(self) -> None:
        """One turn of the lane that has had least."""
        turns = [turn for lane in self.lanes.values() for turn in lane.turns if turn.busy]
        if not turns:
            return
        mine = min(turns, key=lambda turn: (turn.spent, -turn.weight))
        self.now = max(self.now, mine.spent)
        mine.spent = max(mine.spent, self.now)
        start = self.clock()
        try:
            mine.advance()
        except MENDABLE as error:
            print("mull: error in a batch, whose requests are ended:", file=sys.stderr)
            traceback.print_exception(error)
            mine.fail(Refused(f"the model failed: {error}; ask for less, or report it", status=500))
        mine.spent += (self.clock() - start) / mine.weight
        self.stale = self.stale or mine.rests

    def end(self, refusal: Refused) -> None:
        """End everything."""
        for rows in self.waiting:
            for row in rows:
                row.fail(refusal)
        for lane in self.lanes.values():
            for turn in lane.turns:
                turn.give_up(refusal)
        self.waiting.clear()
        self.lanes.clear()
