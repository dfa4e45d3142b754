"""Search over steps, for beam.py, dvts.py and lookahead.py: trees of beginnings that grow by a step at a time.

    every tree begins with `first` steps;  then, step by step:
        path of a beginning = the aggregated scores of its steps
        of each tree the best `keep` are kept; each of them that has not ended gets `width` next steps
    until all that are kept have ended, or after `rounds` steps

An ended text keeps its place among the kept until better ones push it out of it. Of equal texts one is kept, and
further ones only where there are fewer different ones than places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from mull.inference.strategies.best_of_n import Sampling
from mull.inference.strategies.choosing import Aggregation, Candidate, Choice, aggregated, choose, told
from mull.inference.strategies.contract import Event, Found, answer_of
from mull.inference.strategies.scorers import Judged, Scorer, choose_scorer
from mull.inference.strategies.solver import Branch, Key, Manner, Problem, Solver


@dataclass
class Search:
    """Trees of beginnings, and who scores them.

    Args:
        judged: the problem, who writes, and how.
        judge: the scorer.
        aggregation: what the scores of a beginning's steps come to.
        lookahead: steps that are written greedily behind a beginning before it is scored, and then thrown away.
        trace: what happens.
    """

    judged: Judged
    judge: Scorer
    aggregation: Aggregation
    lookahead: int = 0
    trace: list[Event] = field(default_factory=list)

    def grow(self, root: Branch, trees: int, first: int, keep: int, width: int, rounds: int) -> list[Candidate]:
        """The texts that ended while they were kept; those that are kept at the end where none did."""
        grown = self.scored(self.step([root] * (trees * first)))
        groups = [grown[tree * first : (tree + 1) * first] for tree in range(trees)]
        ended: list[Candidate] = []
        for number in range(rounds):
            kept = [best(group, keep) for group in groups]
            flat = [each for group in kept for each in group]
            self.tell(groups, flat)
            ended += [each for each in flat if self.is_done(each.branch) and not any(each is old for old in ended)]
            going = [each.branch for each in flat if not self.is_done(each.branch)]
            if not going or number == rounds - 1:
                return ended or flat
            grown = self.scored(self.step([branch for branch in going for _ in range(width)]))
            groups = [self.next_of(group, grown, width) for group in kept]
        raise AssertionError("there is a last round")

    def next_of(self, kept: Sequence[Candidate], grown: list[Candidate], width: int) -> list[Candidate]:
        """Of a tree what is to be kept next: its ended texts as they are, `width` off the front for each other."""
        found = []
        for each in kept:
            if self.is_done(each.branch):
                found.append(each)
            else:
                found += grown[:width]
                del grown[:width]
        return found

    def is_done(self, branch: Branch) -> bool:
        """Whether nothing more is written behind a text."""
        return branch.ended or len(branch.tokens) >= self.judged.manner.limit

    def step(self, branches: Sequence[Branch]) -> list[Branch]:
        """Each one step further, or to its end."""
        return self.judged.solver.write(branches, self.judged.manner, until=[self.judged.solver.marks.step])

    def scored(self, branches: Sequence[Branch]) -> list[Candidate]:
        """Beginnings with what their paths are worth."""
        solver, manner = self.judged.solver, self.judged.manner
        ahead = list(branches)
        for _ in range(self.lookahead):
            if all(map(self.is_done, ahead)):
                break
            with solver.meter.scoring():
                ahead = solver.write(ahead, manner.greedy(), until=[solver.marks.step])
        paths = [aggregated(scores, self.aggregation) for scores in self.judge.scores(self.judged, ahead)]
        return [
            Candidate(branch, answer_of(solver.marks, branch, self.judged.style), path)
            for branch, path in zip(branches, paths, strict=True)
        ]

    def tell(self, groups: Sequence[Sequence[Candidate]], kept: Sequence[Candidate]) -> None:
        for each in (each for group in groups for each in group):
            chosen = any(each is one for one in kept)
            answer = each.answer if self.is_done(each.branch) else None
            self.trace.append(Event("step", each.branch.text, answer, each.path, self.judge.name, chosen))


def best(group: Sequence[Candidate], keep: int) -> list[Candidate]:
    """The best of a tree, each text once; again only where there are too few."""
    first, more, texts = list[Candidate](), list[Candidate](), set[str]()
    for each in sorted(group, key=lambda each: each.rank, reverse=True):
        (more if each.branch.text in texts else first).append(each)
        texts.add(each.branch.text)
    return [*first, *more][:keep]


@dataclass(frozen=True)
class Searching(Sampling):
    """A strategy that searches.

    Args:
        width: next steps that are drawn for each beginning that is kept, M; N must be a multiple of it.
        scorer: who judges beginnings; see `scorers.py`.
        aggregation: what the scores of a beginning's steps come to.
        choice: among ended texts, by the best path, or by the answer with the largest sum.
        rounds: most steps.
    """

    width: int = 4
    scorer: str = "log_probability"
    aggregation: Aggregation = "last"
    choice: Choice = "max"
    rounds: int = 40

    def __post_init__(self) -> None:
        super().__post_init__()
        self.within(1, width=self.width, rounds=self.rounds)
        if self.n % self.width:
            raise ValueError(f"strategy {self.name}: n={self.n} must be a multiple of width={self.width}")
        choose_scorer(self.scorer)

    @property
    def ahead(self) -> int:
        """Steps of lookahead."""
        return 0

    @property
    def shape(self) -> dict[str, int]:
        """How many trees there are, how many steps each begins with, and how many of them it keeps."""
        return {"trees": 1, "first": self.n, "keep": self.n // self.width}

    def check(self, problem: Problem, solver: Solver, manner: Manner) -> None:
        super().check(problem, solver, manner)
        solver.check(manner, [solver.marks.step])
        choose_scorer(self.scorer).check(Judged(problem, solver, manner, self.style))

    def solve(self, problem: Problem, solver: Solver, manner: Manner, key: Key) -> Found:
        judge, judged = choose_scorer(self.scorer), Judged(problem, solver, manner, self.style)
        search = Search(judged, judge, self.aggregation, self.ahead)
        root = solver.begin(solver.marks.prompt(problem.text, self.style), key)
        ended = search.grow(root, **self.shape, width=self.width, rounds=self.rounds)
        chosen = choose(ended, self.choice)
        trace = [*search.trace, *told("end", ended, chosen, judge.name)]
        return Found(chosen.branch, self.style, trace, judge.name)
