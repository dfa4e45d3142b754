"""Thought-switching penalty: a thought is not to be given up too soon ("TIP" of Wang et al., arXiv 2501.18585).

    z'_v = z_v - alpha   for v in the tokens that begin another thought, while t < Psi + beta
    z'_v = z_v           otherwise

t is the place of the next token, and Psi that where the present thought began: 0, or the place behind the last switch.
So the first beta tokens of each thought resist a switch.

Deviations: in a model from scratch thoughts are attempts that a mark parts (the style `attempts`), and the mark is the
only token that is held down; beta is of the length of one attempt (the paper: 600 tokens, about one thought).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mull.inference.strategies.contract import Found, Strategy, samples, strategy
from mull.inference.strategies.solver import Key, Line, Manner, Problem, Solver, Style
from mull.models.precision import wide

LEAST = torch.finfo(torch.float32).min  # what is less would make the logit of a switch infinite


@dataclass(frozen=True)
class Penalty:
    """The hook: (lines, logits (B, V)) -> logits."""

    alpha: float
    beta: int
    switches: frozenset[int]

    def __call__(self, lines: Sequence[Line], logits: Tensor) -> Tensor:
        logits = wide(logits)
        penalty = torch.zeros_like(logits)
        alpha = self.alpha if self.alpha <= torch.finfo(logits.dtype).max else math.inf
        for row, line in enumerate(lines):
            if self.since(line) < self.beta:
                for token in self.switches:
                    penalty[row, token] = alpha
        return logits - penalty

    def since(self, line: Line) -> int:
        """t - Psi: how many tokens the present thought has."""
        count = 0
        for token in reversed(line.tokens):
            if token.id in self.switches:
                break
            count += 1
        return count


@strategy
@dataclass(frozen=True)
class ThoughtSwitching(Strategy):
    """See the head of this file.

    Args:
        alpha: what is taken off the logits of a switch; inf, and what is more than their number type has, forbids it
            within the window. Less than 0 invites it.
        beta: tokens of each thought that resist.
        style: of the text.
    """

    alpha: float = 3.0
    beta: int = 600
    style: Style = "attempts"

    name, example = "thought_switching", "thought_switching:3:16"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(0, beta=self.beta)
        if not self.alpha >= LEAST:
            raise ValueError(
                f"strategy {self.name}: alpha must be a number of at least {LEAST:.2g}, or inf for no switch, not "
                f"{self.alpha}"
            )

    def check(self, problem: Problem, solver: Solver, manner: Manner) -> None:
        super().check(problem, solver, manner)
        self.penalty(solver)  # says where the tokens of a switch are not known

    def solve(self, problem: Problem, solver: Solver, manner: Manner, key: Key) -> Found:
        root = solver.begin(solver.marks.prompt(problem.text, self.style), key)
        [branch] = solver.write([root], manner, before=self.penalty(solver))
        return Found(branch, self.style, samples("sample", [branch], solver.marks, self.style, branch))

    def penalty(self, solver: Solver) -> Penalty:
        """The hook by itself, for who goes on behind a thought that has begun; what was put there is part of it."""
        return Penalty(self.alpha, self.beta, frozenset(solver.first_tokens(solver.marks.switch)))
