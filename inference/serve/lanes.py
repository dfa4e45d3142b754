"""Lanes: rows that share batches, and the prompts that are read on the way to them.

    Writing    one step is one iteration of all rows of a lane; after the last one, each row has its next token. Rows
               join and leave between tokens
    Reading    the prompts of a lane, one after another and piece by piece; a prompt that has been read joins the rows

A lane is for one way of thinking and for counts of about one size, so that nobody waits for a much deeper row; whose
turn it is among lanes is told in schedule.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Generator, Sequence

import torch

from mull.inference.sampling import NO_NUMBER
from mull.inference.serve.metrics import Metrics
from mull.inference.serve.refusals import Refused
from mull.inference.serve.rows import Row, choose
from mull.inference.serve.thinking import Said, Steps
from mull.models.cache import Cache

PIECE = 64  # tokens of a prompt that are read together


class Turn(ABC):
    """What gets the processor in turns.

    Attributes:
        weight: of its share; twice as much gets twice the time.
        spent: seconds it had, divided by the weight.
    """

    def __init__(self, weight: float) -> None:
        self.weight, self.spent = weight, 0.0

    @property
    @abstractmethod
    def busy(self) -> bool:
        """Whether there is something to do."""

    @property
    @abstractmethod
    def rests(self) -> bool:
        """Whether it stands between two tokens or two prompts, not in the middle of one."""

    @abstractmethod
    def advance(self) -> None:
        """Do a little of it."""

    @abstractmethod
    def give_up(self, refusal: Refused) -> None:
        """End everything without an answer."""

    def fail(self, refusal: Refused) -> None:
        """End without an answer what was advanced last."""
        self.give_up(refusal)


class Writing(Turn):
    """The rows of a lane that write. See the head of this file."""

    def __init__(self, weight: float, metrics: Metrics) -> None:
        super().__init__(weight)
        self.metrics = metrics
        self.rows: list[Row] = []
        self.joining: list[tuple[Row, Cache]] = []
        self.cache: Cache | None = None
        self.steps: Steps | None = None

    @property
    def busy(self) -> bool:
        return bool(self.rows or self.joining)

    @property
    def rests(self) -> bool:
        return self.steps is None

    def advance(self) -> None:
        if self.steps is not None and all(row.done for row in self.rows):  # nobody waits for the end of it
            self.steps = None
        if self.steps is None:
            self.gather()
            if not self.rows:
                return
            self.steps = self.call()
        try:
            next(self.steps)
        except StopIteration as ended:
            self.steps = None
            self.write(ended.value)

    def call(self) -> Steps:
        """Read the last token of each row."""
        assert self.cache is not None
        one = self.rows[0]
        tokens = torch.tensor([[row.tokens[-1]] for row in self.rows], device=one.served.model.device)
        counts = [row.wish.iterations for row in self.rows]
        return one.sharing.way.call(one.served.model, tokens, self.cache, counts)

    def gather(self) -> None:
        """Let rows that have ended go, and those that wait join; the deepest stand first."""
        stay = [(row, self.cache, place) for place, row in enumerate(self.rows) if not row.done]
        new = [(row, cache, 0) for row, cache in self.joining if not row.done]
        self.joining = []
        if new or len(stay) < len(self.rows):
            both = sorted([*stay, *new], key=lambda each: -each[0].wish.iterations)
            self.rows = [row for row, _, _ in both]
            longest = max((row.longest for row in self.rows), default=0)
            held = [(cache, place) for _, cache, place in both if cache is not None]
            self.cache = Cache.gathered(held, longest) if held else None

    def write(self, said: Said) -> None:
        """Give each row its next token."""
        tokens = choose(self.rows, said.logits)
        self.metrics.steps += 1
        for place, (row, token) in enumerate(zip(self.rows, tokens, strict=True)):
            if not row.done:
                give(row, token, place, said, self.metrics)

    def give_up(self, refusal: Refused) -> None:
        for row in [*self.rows, *(row for row, _ in self.joining)]:
            if not row.done:
                row.fail(refusal)
        self.rows, self.joining, self.cache, self.steps = [], [], None, None


class Reading(Turn):
    """The prompts of a lane that are to be read, each for one row or more. See the head of this file."""

    def __init__(self, weight: float, writing: Writing) -> None:
        super().__init__(weight)
        self.writing, self.metrics = writing, writing.metrics
        self.prompts: deque[list[Row]] = deque()
        self.now: Generator[None, None, None] | None = None

    @property
    def busy(self) -> bool:
        return bool(self.prompts)

    @property
    def rests(self) -> bool:
        return self.now is None

    def advance(self) -> None:
        rows = self.prompts[0]
        if all(row.done for row in rows):
            self.now = None
            self.prompts.popleft()
            return
        if self.now is None:
            self.now = self.read(rows)
        try:
            next(self.now)
        except StopIteration:
            self.now = None
            self.prompts.popleft()

    def read(self, rows: Sequence[Row]) -> Generator[None, None, None]:
        """Read the prompt of these rows, and let them join."""
        one = rows[0]
        model, way = one.served.model, one.sharing.way
        ids = torch.tensor([one.prompt], device=model.device)
        cache = model.new_cache(1, len(one.prompt), way.policy)
        flops = 0.0
        for piece in ids.split(PIECE if way.in_pieces else len(one.prompt), dim=1):
            said = yield from way.call(model, piece, cache, [one.wish.iterations])
            flops += said.flops[0]
            for row in rows:
                row.watch(said.residual[0])
        self.metrics.prompt_tokens += len(one.prompt)
        self.metrics.flops += flops
        for number, row in enumerate(rows):
            if not row.done:
                token = choose([row], said.logits)[0]
                shared = flops if number == 0 else 0.0  # it was read once for all of them
                own = Said(said.logits, said.used, [shared], said.residual)
                give(row, token, 0, own, self.metrics, counted=False)
            if not row.done:
                self.writing.joining.append((row, cache))

    def give_up(self, refusal: Refused) -> None:
        for rows in self.prompts:
            for row in rows:
                if not row.done:
                    row.fail(refusal)
        self.prompts.clear()
        self.now = None

    def fail(self, refusal: Refused) -> None:
        for row in self.prompts.popleft():
            if not row.done:
                row.fail(refusal)
        self.now = None


def give(row: Row, token: int, place: int, said: Said, metrics: Metrics, counted: bool = True) -> None:
    """Give a row its next token."""
    if token < 0:
        row.fail(Refused(NO_NUMBER, status=500))
        return
    metrics.tokens += 1
    metrics.iterations += said.used[place]
    metrics.flops += said.flops[place] if counted else 0.0
    row.take(token, said.logits[place], said.used[place], said.flops[place], said.residual[place])
