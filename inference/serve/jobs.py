"""A job: a request on its way, with the rows that answer it. It stands between the thread of the requests, which waits
for what the rows say, and the thread that thinks."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from mull.inference.serve.metrics import Metrics
from mull.inference.serve.protocol import Asked
from mull.inference.serve.rows import Ended, Event, Failed, Row
from mull.inference.serve.schedule import Schedule


class Job:
    """See the head of this file. To be made in the event loop that waits for it."""

    def __init__(self, asked: Asked, schedule: Schedule, metrics: Metrics) -> None:
        self.asked, self.schedule, self.metrics = asked, schedule, metrics
        self.loop, self.said = asyncio.get_running_loop(), asyncio.Queue[Event]()
        self.start, self.waits = time.perf_counter(), True
        self.prompts = [
            [
                Row(number, asked.served, asked.sharing, ids, asked.wish, asked.seed + number, self.say)
                for number in range(place * asked.count, (place + 1) * asked.count)
            ]
            for place, ids in enumerate(asked.prompts)
        ]
        for rows in self.prompts:
            schedule.check_fits(rows)

    def say(self, event: Event) -> None:
        """What a row has to say, from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody listens
            self.loop.call_soon_threadsafe(self.said.put_nowait, event)

    async def events(self) -> AsyncIterator[Event]:
        """Have the request answered; all that its rows say, until the last one has ended.

        Raises:
            Refused: the answer cannot be had.
        """
        for rows in self.prompts:
            self.schedule.submit(rows)
        left = sum(map(len, self.prompts))
        while left:
            event = await self.said.get()
            if self.waits:
                self.waits = False
                self.metrics.first_seconds += time.perf_counter() - self.start
                self.metrics.first_count += 1
            if isinstance(event, Failed):
                self.cancel()
                raise event.refusal
            left -= isinstance(event, Ended)
            yield event

    def cancel(self) -> None:
        """Nobody waits for the answer any more: its rows leave their batches."""
        for rows in self.prompts:
            for row in rows:
                row.cancelled = True
        self.schedule.wake()
