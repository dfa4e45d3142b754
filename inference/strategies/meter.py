"""Meter: what an answer cost, counted as it was executed.

    flops = sum over tokens that were read:  once(n) + iterations * iteration(n)        n positions that it attends to
            + answers that an exit rule read out on the way

`once` and `iteration` are the costs of the model's configuration (models/cost.py), so that a prompt that is forked is
counted once, a token that is taken back is counted all the same, and a token that was drawn last and never read is not.
A row counts its own length, not that of the longest row beside it; a token that comes alone looks no further back than
its window. Of routed passes the tokens that took them are counted, not the blocks that they are gathered in, which may
take two or three times as much where few tokens go. What scorers read is in the sum, and also by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol, Self, runtime_checkable


@dataclass(frozen=True)
class Cost:
    """What was spent.

    Attributes:
        flops: forward FLOPs; 0 behind an endpoint, which does not say.
        tokens: tokens that were drawn.
        calls: times that a text was asked to be gone on with, or to be scored.
        seconds: of the clock.
        iterations: of all tokens that were read, prompts included; 0 for a model without a loop.
        read: tokens that the model read, prompts included.
        scorer_flops: the part of `flops` that scorers took.
    """

    flops: float = 0.0
    tokens: int = 0
    calls: int = 0
    seconds: float = 0.0
    iterations: int = 0
    read: int = 0
    scorer_flops: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def __sub__(self, other: Cost) -> Cost:
        return Cost(**{f.name: getattr(self, f.name) - getattr(other, f.name) for f in fields(self)})

    def as_dict(self) -> dict[str, Any]:
        """Its numbers by name, for JSON."""
        return asdict(self)


class Meter:
    """Adds up what a solver spends; `spent` says how much since it was made.

    What one answer cost is the difference of two readings:

        before = meter.spent
        ...
        cost = meter.spent - before
    """

    def __init__(self) -> None:
        self.spent = Cost()
        self.for_scorer = False

    def add(self, *, flops: float = 0.0, tokens: int = 0, calls: int = 0, iterations: int = 0, read: int = 0) -> None:
        """Count more."""
        self.spent += Cost(
            flops=flops,
            tokens=tokens,
            calls=calls,
            iterations=iterations,
            read=read,
            scorer_flops=flops if self.for_scorer else 0.0,
        )

    @contextmanager
    def scoring(self) -> Iterator[None]:
        """What is spent inside is a scorer's."""
        before, self.for_scorer = self.for_scorer, True
        try:
            yield
        finally:
            self.for_scorer = before


@runtime_checkable
class Shared(Protocol):
    """A solver whose branches know whom they bill, so that several problems may share it; see together.py."""

    meter: Meter

    def billed(self, meter: Meter) -> Self:
        """The same solver with another meter, which the branches bill that it begins."""
        found = copy(self)
        found.meter = meter
        return found
