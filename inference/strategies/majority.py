"""Majority vote, or self-consistency: of N answers the most frequent is taken (Wang et al., arXiv 2203.11171).

    y_1 .. y_N ~ p(. | problem <chain>)
    argmax_a  number of the y_n with the answer a

An answer counts by its words. Texts whose thinking did not end have none, and do not vote. Ties: choosing.py.
"""

from dataclasses import dataclass

from mull.inference.strategies.best_of_n import Sampling
from mull.inference.strategies.choosing import Candidate, choose, told
from mull.inference.strategies.contract import Found, answer_of, strategy
from mull.inference.strategies.solver import Key, Manner, Problem, Solver


@strategy
@dataclass(frozen=True)
class Majority(Sampling):
    """See the head of this file."""

    name, example = "majority", "majority:16"

    def solve(self, problem: Problem, solver: Solver, manner: Manner, key: Key) -> Found:
        branches = self.drawn(problem, solver, manner, key)
        candidates = [Candidate(branch, answer_of(solver.marks, branch, self.style)) for branch in branches]
        best = choose(candidates, "vote")
        return Found(best.branch, self.style, told("sample", candidates, best))
