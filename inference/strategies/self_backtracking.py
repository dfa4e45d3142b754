"""Self-backtracking: the model says when its last step was wrong, and the search goes back there (Yang et al., arXiv
2502.04404).

    states = {the problem}
    b + 1 times:   draw N texts from the states; each stops at `backtrack`, or ends and joins the pool
                   of those that stopped, take the last step off; up to sqrt(N) different ones, not visited before,
                   the likeliest by the token first, are the next states
    answer = that of the pool with the largest length-normalised log-probability

b is `rounds`; with b = 0 nothing is taken back, and where no text has ended, those that stopped are heard out. A text
that goes on after its own `backtrack` carries the wrong step along; here the step is gone from what is read, as if it
had never been written. A writer that does not tell how likely its tokens are is refused: there is no other order.

Deviations: each round draws N texts, divided among its states; the paper expands each state N-fold. Its code sums the
mean log-probabilities of equal answers, which are negative, so that agreement counts against an answer; ours takes the
best text (`choice=max`), or sums probabilities (`choice=vote`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt

from mull.inference.strategies.best_of_n import Sampling
from mull.inference.strategies.choosing import Candidate, Choice, choose, told
from mull.inference.strategies.contract import Event, Found, answer_of, strategy
from mull.inference.strategies.scorers import Judged, LogProbability, mean_log_probability
from mull.inference.strategies.solver import Branch, Key, Manner, Problem, Solver, Style


@strategy
@dataclass(frozen=True)
class SelfBacktracking(Sampling):
    """See the head of this file.

    Args:
        n: texts that each round draws.
        style: of the texts.
        rounds: how often the search goes back.
        choice: among the texts that ended.
    """

    style: Style = "search"
    rounds: int = 1
    choice: Choice = "max"

    name, example = "self_backtracking", "self_backtracking:16,rounds=2"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.within(0, rounds=self.rounds)

    def check(self, problem: Problem, solver: Solver, manner: Manner) -> None:
        super().check(problem, solver, manner)
        solver.check(manner, [solver.marks.backtrack])

    def solve(self, problem: Problem, solver: Solver, manner: Manner, key: Key) -> Found:
        states = [solver.begin(solver.marks.prompt(problem.text, self.style), key)]
        visited, pool, trace = {""}, list[Branch](), list[Event]()
        written: list[Branch] = []
        for number in range(self.rounds + 1):
            asked = [states[place % len(states)] for place in range(self.n)]
            written = solver.write(asked, manner, until=[solver.marks.backtrack])
            stopped = [branch for branch in written if branch.at(solver.marks.backtrack)]
            pool += [branch for branch in written if not branch.at(solver.marks.backtrack)]
            if number == self.rounds:
                break
            states = self.next_states(solver, stopped, visited, number)
            trace += [Event("backtrack", state.text) for state in states]
            if not states:
                break
        judged, judge = Judged(problem, solver, manner, self.style), LogProbability()
        ended = pool or (written if self.rounds else solver.write(written, manner))
        candidates = [
            Candidate(branch, answer_of(solver.marks, branch, self.style), scores[-1])
            for branch, scores in zip(ended, judge.scores(judged, ended), strict=True)
        ]
        best = choose(candidates, self.choice)
        return Found(best.branch, self.style, [*trace, *told("end", candidates, best, judge.name)], judge.name)

    def next_states(self, solver: Solver, stopped: Sequence[Branch], visited: set[str], number: int) -> list[Branch]:
        """Where the search goes on: what is left without the last steps, each once, and never a second time."""
        found: list[Branch] = []
        for branch in sorted(stopped, key=likelihood, reverse=True):
            state = taken_back(solver, branch)
            if state.text not in visited and len(found) < max(1, isqrt(self.n)):
                visited.add(state.text)
                found.append(state.again(number))
        return found


def likelihood(branch: Branch) -> tuple[float, float]:
    """Log-probability by the token, then altogether. Raises ValueError where the writer does not tell it."""
    return mean_log_probability(branch, len(branch.tokens)), branch.log_probability


def taken_back(solver: Solver, branch: Branch) -> Branch:
    """A branch that stands at a `backtrack`, without it and without the step that it takes back, which may be closed by
    a mark or not."""
    step = solver.marks.step
    before = branch.written[: branch.written.rindex(solver.marks.backtrack)]
    end = before.rstrip(" ").removesuffix(step).rfind(step)
    return solver.cut_text(branch, end + len(step) if end >= 0 else 0)
