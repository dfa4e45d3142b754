"""Scorers: what a text that is written step by step is worth.

A scorer judges prefixes: a branch as it was after each of its steps, and as it is. All scores lie in 0 .. 1, so that
they can be multiplied and summed.

    log_probability   exp of the mean log-probability of the tokens drawn so far              (length-normalised)
    process           the reward head at the end of a step: can the answer still be reached?  (arXiv 2305.20050)
    settled           1 / (1 + the mean residual of the tokens drawn so far)                  how far thinking had come
    random            uniform: the control of every other
    oracle            the exact labels of steps, and the exact checker of answers: a ceiling, and labelled so

`process` may judge with more or fewer iterations than were written with (`process:8`): its depth is a knob too. It was
trained at the ends of steps, so an answer behind the last step gets no score of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp
from typing import ClassVar

from mull.inference.strategies.contract import answer_of
from mull.inference.strategies.solver import Branch, Manner, Problem, Solver, Style, Token, seed_of
from mull.inference.written import filled, parse
from mull.models.registry import Registry


@dataclass(frozen=True)
class Judged:
    """What is judged: the problem, who wrote, how, and in which style."""

    problem: Problem
    solver: Solver
    manner: Manner
    style: Style


@dataclass(frozen=True)
class Scorer(ABC):
    """See the head of this file.

    Attributes:
        name: the word that it is registered and written by.
        example: how it is written.
    """

    name: ClassVar[str]
    example: ClassVar[str]

    @classmethod
    def from_text(cls, text: str) -> Scorer:
        """The scorer that `value,option=value` stands for."""
        return filled(cls, f"scorer {cls.name}", text, cls.example)

    def check(self, judged: Judged) -> None:  # noqa: B027  # most need nothing
        """Raise a ValueError where what it needs is not there; asked before anything is written."""

    @abstractmethod
    def prefixes(self, judged: Judged, branch: Branch, lengths: Sequence[int]) -> list[float]:
        """The scores of a branch as it was after so many tokens each; the last length is all of it."""

    def prepare(self, judged: Judged, branches: Sequence[Branch]) -> Sequence[Branch]:
        """Compute together what the scores of all of these take; the branches that hold it, in their order."""
        return branches

    def places(self, judged: Judged, branch: Branch) -> list[int]:
        """The lengths at which a branch is judged: after each step, and as it is."""
        return steps_of(judged.solver, branch)

    def scores(self, judged: Judged, branches: Sequence[Branch]) -> list[list[float]]:
        """The scores of each branch after each of its steps, and as it is."""
        with judged.solver.meter.scoring():
            ready = self.prepare(judged, branches)
            return [self.prefixes(judged, branch, self.places(judged, branch)) for branch in ready]


def steps_of(solver: Solver, branch: Branch) -> list[int]:
    """How many tokens stand up to the end of each step, and up to the end of all."""
    ends = branch.ends(solver.marks.step)
    return ends if ends[-1:] == [len(branch.tokens)] else [*ends, len(branch.tokens)]


SCORERS: Registry[type[Scorer]] = Registry("scorer")


def scorer(kind: type[Scorer]) -> type[Scorer]:
    """A decorator that registers a scorer under its name."""
    return SCORERS.register(kind.name)(kind)


def choose_scorer(given: str | Scorer) -> Scorer:
    """The scorer, parsed if it is written out. Raises ValueError that names what is known."""
    return parse(given, SCORERS) if isinstance(given, str) else given


def drawn(branch: Branch, length: int) -> list[Token]:
    """Those of the first `length` tokens of a branch that the model chose itself, and nobody put there."""
    return [token for token in branch.tokens[:length] if token.drawn]


def mean_log_probability(branch: Branch, length: int) -> float:
    """Of the tokens drawn among so many of a branch, by the token; 0 where none was. Raises ValueError where the writer
    tells it of none of them."""
    tokens = drawn(branch, length)
    known = [token.log_probability for token in tokens if token.log_probability is not None]
    if tokens and not known:
        raise ValueError(
            "this writer does not tell how likely its tokens are (logprobs of tokens that make up its text), and by "
            "that alone texts would be ranked: take another scorer or strategy, or a server that tells"
        )
    return sum(known) / max(len(known), 1)


@scorer
@dataclass(frozen=True)
class LogProbability(Scorer):
    """How likely the model itself finds what it wrote, by the token."""

    name = example = "log_probability"

    def prefixes(self, judged: Judged, branch: Branch, lengths: Sequence[int]) -> list[float]:
        return [exp(mean_log_probability(branch, length)) for length in lengths]


@scorer
@dataclass(frozen=True)
class Process(Scorer):
    """The reward head at the end of each step; of a text without steps, at its last token.

    Args:
        iterations: to judge at; 0 means those that were written with, whose states are at hand.
    """

    iterations: int = 0

    name, example = "process", "process"

    def check(self, judged: Judged) -> None:
        refusal = judged.solver.refuses_score
        if refusal:
            raise ValueError(f"scorer process: {refusal}")
        judged.solver.check(self.manner(judged))

    def manner(self, judged: Judged) -> Manner:
        return replace(judged.manner, iterations=self.iterations) if self.iterations else judged.manner

    def places(self, judged: Judged, branch: Branch) -> list[int]:
        return branch.ends(judged.solver.marks.step) or [len(branch.tokens)]

    def prepare(self, judged: Judged, branches: Sequence[Branch]) -> Sequence[Branch]:
        last = [judged.solver.cut(branch, self.places(judged, branch)[-1]) for branch in branches]
        judged.solver.score(last, self.manner(judged))  # what is read here, is read of all branches together
        return last  # a branch that was cut holds what was read of it at another depth, and the whole one does not

    def prefixes(self, judged: Judged, branch: Branch, lengths: Sequence[int]) -> list[float]:
        parts = [judged.solver.cut(branch, length) for length in lengths]
        return judged.solver.score(parts, self.manner(judged))


@scorer
@dataclass(frozen=True)
class Settled(Scorer):
    """How far thinking had come when each token was chosen: small last steps of the state. Tokens that an exit rule let
    go after one iteration tell nothing; where no token tells anything, nothing has settled, which is 0."""

    name = example = "settled"

    def check(self, judged: Judged) -> None:
        most = judged.solver.most_iterations(judged.manner)
        if most is None:
            raise ValueError("scorer settled: this writer has no residuals, which models with a loop have")
        if most == 1:
            raise ValueError(
                "scorer settled: at 1 iteration there is no change from one to the next to go by; give 2 iterations or "
                "more, or take another scorer"
            )

    def prefixes(self, judged: Judged, branch: Branch, lengths: Sequence[int]) -> list[float]:
        found = []
        for length in lengths:
            moved = [token.residual for token in drawn(branch, length) if token.residual is not None]
            found.append(1 / (1 + sum(moved) / len(moved)) if moved else 0.0)
        return found


@scorer
@dataclass(frozen=True)
class Random(Scorer):
    """Nothing but chance; what a scorer must beat."""

    name = example = "random"

    def prefixes(self, judged: Judged, branch: Branch, lengths: Sequence[int]) -> list[float]:
        return [seed_of((*branch.key, 1), length) / 2**63 for length in lengths]


@scorer
@dataclass(frozen=True)
class Oracle(Scorer):
    """The exact labels and the exact checker, which no solver has when it counts: a ceiling."""

    name = example = "oracle"

    def check(self, judged: Judged) -> None:
        if judged.problem.check is None:
            raise ValueError(
                "scorer oracle: it asks the exact checker of answers, and this text has none: give check= in Python, "
                "or take the problems of a task, as mull compare does"
            )

    def prefixes(self, judged: Judged, branch: Branch, lengths: Sequence[int]) -> list[float]:
        problem = judged.problem
        assert problem.check is not None  # see `check`
        labels = [] if problem.steps is None else [float(label) for label in problem.steps(branch.text)]
        labels = [*labels, *[1.0] * len(lengths)][: len(lengths)]  # without labels every step is as good as another
        answer = answer_of(judged.solver.marks, branch, judged.style)
        finished = branch.ended or bool(answer) or len(branch.tokens) >= judged.manner.limit
        return [*labels[:-1], float(problem.check(answer)) if finished else labels[-1]]
