"""Which of several answers is taken.

    path      min | last | product   what the scores of a text's steps come to
    max       the text with the best path
    vote      the answer whose texts have the largest sum of paths     (majority vote where every path is 1)

Ties go to the likelier, never to what was written first: for `max` to the text of the larger log-probability, for
`vote` to the answer whose texts have the larger sum of probabilities. An answer is given by its likeliest text. Texts
without an answer are taken only where there is no other. Where a writer tells no probabilities, ties are left to what
was written first.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Literal, NamedTuple

from mull.inference.strategies.contract import Event
from mull.inference.strategies.solver import Branch

Choice = Literal["max", "vote"]
Aggregation = Literal["min", "last", "product"]


class Candidate(NamedTuple):
    """A text that may be chosen: its branch, its answer, and what its path is worth."""

    branch: Branch
    answer: str
    path: float = 1.0

    @property
    def rank(self) -> tuple[float, float]:
        return self.path, self.branch.log_probability


def aggregated(scores: Sequence[float], how: Aggregation) -> float:
    """What the scores of a text's steps come to."""
    if how == "last":
        return scores[-1]
    return min(scores) if how == "min" else math.prod(scores)


def choose(candidates: Sequence[Candidate], how: Choice) -> Candidate:
    """The one that is taken; see the head of this file."""
    answered = [each for each in candidates if each.answer] or list(candidates)
    if how == "max":
        return max(answered, key=lambda each: each.rank)
    groups: dict[str, list[Candidate]] = defaultdict(list)
    for each in answered:
        groups[each.answer].append(each)
    best = max(groups.values(), key=lambda group: (sum(each.path for each in group), likelihood(group)))
    return max(best, key=lambda each: each.branch.log_probability)


def likelihood(group: Sequence[Candidate]) -> float:
    """The logarithm of the summed probabilities of these texts."""
    chances = [each.branch.log_probability for each in group]
    top = max(chances)
    return top + math.log(sum(math.exp(chance - top) for chance in chances))


def told(what: str, candidates: Sequence[Candidate], chosen: Candidate, scorer: str | None = None) -> list[Event]:
    """What happened: each candidate, and which was chosen."""
    return [
        Event(what, each.branch.text, each.answer, None if scorer is None else each.path, scorer, each is chosen)
        for each in candidates
    ]
