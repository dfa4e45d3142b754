"""Strategy: one way of spending compute on one answer, and the registry of them.

A strategy is a frozen dataclass, whose fields are its options, in a file of its own with `@strategy` above it. It gets
a problem, a solver and the manner of writing, and returns the branch whose answer it chooses. Written out it is
`name:value,option=value` (`majority:16`). `chain.py` is the shortest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from mull.inference.strategies.meter import Cost
from mull.inference.strategies.solver import Branch, Key, Manner, Marks, Problem, Solver, Style
from mull.inference.written import check_values, filled
from mull.inference.written import parse as parse_written
from mull.models.registry import Registry

MOST = 65_536  # texts, steps, rounds: more of them end with nobody waiting


class Event(NamedTuple):
    """Something that happened on the way to an answer.

    Attributes:
        what: sample, step, wait, cap, backtrack, strategy ...
        text: that it happened to.
        answer: in that text; None while there is none.
        score: it was given; None where nobody judged.
        scorer: who judged; `oracle` is the exact checker, and what it chooses a ceiling.
        chosen: whether it was gone on with, or is the answer.
    """

    what: str
    text: str
    answer: str | None = None
    score: float | None = None
    scorer: str | None = None
    chosen: bool = False

    def as_dict(self) -> dict[str, Any]:
        """What there is of it, for JSON."""
        return {name: value for name, value in self._asdict().items() if value is not None}


@dataclass(frozen=True)
class Found:
    """What a strategy returns: the branch that it chooses, the style that it is written in, and what happened. Of a
    strategy that used others, `by` says which; `scorer` who chose."""

    branch: Branch
    style: Style
    trace: list[Event] = field(default_factory=list)
    scorer: str | None = None
    by: str | None = None


@dataclass(frozen=True)
class Solution:
    """An answer, and what it took.

    Attributes:
        answer: what stands behind the thinking; empty where the thinking did not end.
        text: all that was written of the chosen branch.
        cost: what was spent on it, on what was thrown away too.
        trace: what happened on the way.
        strategy: that was followed, written out; where it chose another, `name -> other`.
        scorer: who chose among several; None where nothing was scored.
        thinking: tokens of the thinking in the text; see `Branch.thinking`.
        ceiling: whether the exact checker chose, so that the answer is a ceiling and no result.
    """

    answer: str
    text: str
    cost: Cost
    trace: list[Event]
    strategy: str
    scorer: str | None = None
    thinking: int | None = None

    @property
    def ceiling(self) -> bool:
        return self.scorer == "oracle"

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {
            "answer": self.answer,
            "text": self.text,
            "strategy": self.strategy,
            "scorer": self.scorer,
            "ceiling": self.ceiling,
            "cost": self.cost.as_dict(),
            "trace": [event.as_dict() for event in self.trace],
        }


@dataclass(frozen=True)
class Strategy(ABC):
    """See the head of this file.

    Attributes:
        name: the word that it is registered and written by.
        example: how it is written.
        temperature: that it draws at where nobody says another; None leaves it to the strategies that it uses.
    """

    name: ClassVar[str]
    example: ClassVar[str]
    temperature: ClassVar[float | None] = 0.0

    @classmethod
    def from_text(cls, text: str) -> Strategy:
        """The strategy that `value:value,option=value` stands for."""
        return filled(cls, f"strategy {cls.name}", text, cls.example)

    def __post_init__(self) -> None:
        check_values(self, f"strategy {self.name}")

    @abstractmethod
    def solve(self, problem: Problem, solver: Solver, manner: Manner, key: Key) -> Found:
        """Write an answer.

        Args:
            problem: what is asked; its checker is for the scorer `oracle` alone.
            solver: who writes.
            manner: how.
            key: what draws depend on; the strategy begins its branches with it.

        Raises:
            ValueError: the writer fails. What it needs is asked for before: see `check`.
        """

    def check(self, problem: Problem, solver: Solver, manner: Manner) -> None:
        """Raise a ValueError where what `solve` needs is not there: a mark, a reward head, a temperature, room for the
        problem. Asked before anything is written, and of all cells of a comparison before the first one is measured."""
        solver.check(manner)
        style: Style | None = getattr(self, "style", None)
        if style is not None:
            solver.begin(solver.marks.prompt(problem.text, style))

    def ready(self, problem: Problem, solver: Solver, manner: Manner) -> Manner:
        """The manner, checked, at the temperature of this strategy where it says none."""
        own = manner.at(self.temperature)
        self.check(problem, solver, own)
        return own

    def follow(self, problem: Problem, solver: Solver, manner: Manner, key: Key) -> Found:
        """`solve`, when all that it needs is there."""
        return self.solve(problem, solver, self.ready(problem, solver, manner), key)

    @property
    def goes_by(self) -> str:
        """A digest of what its options name and do not hold, such as a file's contents: where that changes, a
        comparison measures anew. Empty where there is nothing of the kind."""
        return ""

    @property
    def own_depth(self) -> bool:
        """Whether it thinks at iteration counts of its own, whatever count it is given. What it reaches then says
        nothing of the count that it was given, and is compared with nothing by it."""
        return False

    def at_least(self, limit: int, /, **values: int) -> None:
        """Raise a ValueError for an option below a limit."""
        for name, value in values.items():
            if value < limit:
                raise ValueError(f"strategy {self.name}: {name} must be at least {limit}, not {value}")

    def within(self, limit: int, /, **values: int) -> None:
        """Raise a ValueError for an option below a limit, or above `MOST`."""
        self.at_least(limit, **values)
        for name, value in values.items():
            if value > MOST:
                raise ValueError(f"strategy {self.name}: {name} must be at most {MOST:,}, not {value:,}")


STRATEGIES: Registry[type[Strategy]] = Registry("strategy")


def strategy(kind: type[Strategy]) -> type[Strategy]:
    """A decorator that registers a strategy under its name."""
    return STRATEGIES.register(kind.name)(kind)


def choose_strategy(given: str | Strategy) -> Strategy:
    """The strategy, parsed if it is written out, blanks around it aside. Raises ValueError that names what is known."""
    if not isinstance(given, str | Strategy):
        raise ValueError(f"strategy must be written as majority:16, or be a Strategy, not {given!r}")
    return parse_written(given.strip(), STRATEGIES) if isinstance(given, str) else given


def answer_of(marks: Marks, branch: Branch, style: Style) -> str:
    """The answer of a branch, with one blank between words; empty where there is none."""
    return " ".join(marks.answer(branch.text, style).split())


def samples(
    what: str, branches: Iterable[Branch], marks: Marks, style: Style, chosen: Branch | None = None
) -> list[Event]:
    """An event of each branch, of which one is chosen."""
    return [Event(what, branch.text, answer_of(marks, branch, style), chosen=branch is chosen) for branch in branches]
