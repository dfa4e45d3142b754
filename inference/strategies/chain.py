"""Chain of thought: every step is written in full, then the answer (Wei et al., arXiv 2201.11903).

    problem <chain>  step <step> step <step> ... </think> answer

Deviation: the paper shows examples of chains in the prompt; a small model is trained on them, and a control word asks
for one. Behind an endpoint the word is an instruction (`Marks.chain`).
"""

from dataclasses import dataclass
from typing import ClassVar

from mull.inference.strategies.contract import Found, Strategy, samples, strategy
from mull.inference.strategies.solver import Key, Manner, Problem, Solver, Style


@dataclass(frozen=True)
class InOneGo(Strategy):
    """A problem with a style behind it, gone on with to the end."""

    style: ClassVar[Style]

    def solve(self, problem: Problem, solver: Solver, manner: Manner, key: Key) -> Found:
        [branch] = solver.write([solver.begin(solver.marks.prompt(problem.text, self.style), key)], manner)
        return Found(branch, self.style, samples("sample", [branch], solver.marks, self.style, branch))


@strategy
@dataclass(frozen=True)
class Chain(InOneGo):
    """See the head of this file."""

    name = example = style = "chain"
