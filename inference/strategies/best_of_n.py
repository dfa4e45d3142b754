"""Best of N: N answers are drawn, and a scorer chooses among them (Cobbe et al., arXiv 2110.14168).

    y_1 .. y_N ~ p(. | problem <chain>)
    path(y_n) = min | last | product  of the scores of its steps
    max       argmax_n path(y_n)
    vote      argmax_a sum of path(y_n) over the y_n with the answer a        (PRM-Vote of Liu et al., arXiv 2502.06703)

Without a trained scorer, `log_probability` takes the answer that the model finds likeliest by the token.
"""

from dataclasses import dataclass
from typing import ClassVar

from mull.inference.strategies.choosing import Aggregation, Candidate, Choice, aggregated, choose, told
from mull.inference.strategies.contract import Found, Strategy, answer_of, strategy
from mull.inference.strategies.scorers import Judged, choose_scorer
from mull.inference.strategies.solver import Branch, Key, Manner, Problem, Solver, Style


@dataclass(frozen=True)
class Sampling(Strategy):
    """A strategy that draws N texts.

    Args:
        n: texts that are drawn.
        style: of the texts.
    """

    n: int = 16
    style: Style = "chain"

    temperature: ClassVar[float | None] = 0.7

    def __post_init__(self) -> None:
        super().__post_init__()
        self.within(1, n=self.n)

    def drawn(self, problem: Problem, solver: Solver, manner: Manner, key: Key) -> list[Branch]:
        """The N texts."""
        return solver.write([solver.begin(solver.marks.prompt(problem.text, self.style), key)] * self.n, manner)

    def check(self, problem: Problem, solver: Solver, manner: Manner) -> None:
        super().check(problem, solver, manner)
        if self.n > 1 and not manner.temperature:
            raise ValueError(
                f"strategy {self.name}: at temperature 0 all of its {self.n} texts would be the same; "
                "give a temperature"
            )


@strategy
@dataclass(frozen=True)
class BestOfN(Sampling):
    """See the head of this file.

    Args:
        scorer: who judges; see `scorers.py`.
        choice: by the best text, or by the answer with the largest sum.
        aggregation: what the scores of a text's steps come to.
    """

    scorer: str = "log_probability"
    choice: Choice = "max"
    aggregation: Aggregation = "last"

    name, example = "best_of_n", "best_of_n:16,scorer=process"

    def __post_init__(self) -> None:
        super().__post_init__()
        choose_scorer(self.scorer)

    def check(self, problem: Problem, solver: Solver, manner: Manner) -> None:
        super().check(problem, solver, manner)
        choose_scorer(self.scorer).check(Judged(problem, solver, manner, self.style))

    def solve(self, problem: Problem, solver: Solver, manner: Manner, key: Key) -> Found:
        judge, judged = choose_scorer(self.scorer), Judged(problem, solver, manner, self.style)
        branches = self.drawn(problem, solver, manner, key)
        candidates = [
            Candidate(branch, answer_of(solver.marks, branch, self.style), aggregated(scores, self.aggregation))
            for branch, scores in zip(branches, judge.scores(judged, branches), strict=True)
        ]
        best = choose(candidates, self.choice)
        return Found(best.branch, self.style, told("sample", candidates, best, judge.name), judge.name)
