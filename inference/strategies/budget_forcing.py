"""Budget forcing: thinking is made longer or cut off (Muennighoff et al., arXiv 2501.19393, "s1").

    extend   when the end of the thinking has been drawn: it is taken back, `wait` stands in its place, and the model
             goes on with what is left of its budget; at most `waits` times
    cap      when the thinking has `cap` tokens: its last step is closed, the end of the thinking is put there, and the
             model answers; if it thinks on instead and ends its thinking once more, it is stopped there

Both act after a token has been drawn. To forbid the end of the thinking before the draw would be another method: the
mass of the forbidden token would go to all the others, and not to the wait.

The controls of the paper: another token in place of the wait (`put=random`), or nothing (`put=empty`: the end is taken
back, and held down for one token, since the likeliest would be the end again; this alone acts before a draw). To them
belongs a majority vote at equal FLOPs.

The twin on depth: `least` and `most` are the least and the most iterations of the exit rule, the same two rules for how
long one token is thought about: an early exit is not let through, and a late one is forced.

Deviations: the paper's code has every stretch of thinking begin with a token that ends neither it nor the text
(`min_tokens=1`); here this is so behind `put=empty`, and of the end of the thinking. The wait of a model from scratch
is a word that it was trained on, in traces with errors that are put right (the style `correct`). The paper also puts
"Final Answer:" behind a forced end; here the end of the thinking says it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from mull.inference.exits import as_exit
from mull.inference.strategies.contract import Event, Found, Strategy, answer_of, strategy
from mull.inference.strategies.solver import Before, Branch, Key, Line, Manner, Problem, Solver, Style


@dataclass(frozen=True)
class NotAtOnce:
    """A hook that forbids some tokens as the first that is drawn for a line, by their ids."""

    tokens: tuple[int, ...]

    def __call__(self, lines: Sequence[Line], logits: Tensor) -> Tensor:
        held = torch.zeros_like(logits)
        for row, line in enumerate(lines):
            if not line.new:
                held[row, list(self.tokens)] = -math.inf
        return logits + held


@strategy
@dataclass(frozen=True)
class BudgetForcing(Strategy):
    """See the head of this file.

    Args:
        waits: how often the end of the thinking is taken back.
        cap: most tokens of thinking; 0 for no cap.
        put: what stands in its place: the mark `wait`, a random token, or nothing.
        least: iterations before which the exit rule lets no token go; 0 leaves it as it is.
        most: iterations after which every token goes; 0 leaves it as it is.
        style: of the text.
    """

    waits: int = 1
    cap: int = 0
    put: Literal["wait", "random", "empty"] = "wait"
    least: int = 0
    most: int = 0
    style: Style = "correct"

    name, example = "budget_forcing", "budget_forcing:2,cap=32"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.within(0, waits=self.waits, least=self.least, most=self.most)
        self.at_least(0, cap=self.cap)
        if 0 < self.most < self.least:
            raise ValueError(f"strategy {self.name}: least={self.least} is more than most={self.most}")

    @property
    def own_depth(self) -> bool:
        return self.most > 0

    def check(self, problem: Problem, solver: Solver, manner: Manner) -> None:
        deep, marks = self.deepened(manner), solver.marks
        super().check(problem, solver, deep)
        put = [marks.wait] if self.waits and self.put == "wait" else []
        solver.check(deep, [marks.end_of_thinking, *put, *([marks.step] if self.cap else [])])
        if self.waits and self.put == "random":
            solver.random_text(())  # says where there are none
        if self.waits and self.put == "empty":
            solver.first_tokens(marks.end_of_thinking)  # says where they are not known
        self.thinking(deep, solver, solver.begin(marks.prompt(problem.text, self.style)))
        most = solver.most_iterations(deep)
        if most is not None and self.least > most:
            raise ValueError(
                f"strategy {self.name}: least={self.least} is more than the {most} iterations that a token gets, so "
                f"that the exit rule would let none go early; name no count below {self.least}, or a smaller least"
            )

    def solve(self, problem: Problem, solver: Solver, manner: Manner, key: Key) -> Found:
        marks, manner = solver.marks, self.deepened(manner)
        branch = solver.begin(marks.prompt(problem.text, self.style), key)
        limit = self.thinking(manner, solver, branch)
        trace: list[Event] = []
        before: Before | None = None
        for number in range(self.waits + 1):
            [branch] = solver.write([branch], manner, until=[marks.end_of_thinking], limit=limit, before=before)
            if number == self.waits or not branch.at(marks.end_of_thinking):
                break
            branch = self.extended(solver, branch, (*key, number))
            if self.put == "empty":
                before = NotAtOnce(tuple(solver.first_tokens(marks.end_of_thinking)))
            trace.append(Event("wait", branch.text))
        if self.cap and len(branch.tokens) >= limit and not branch.ended and not marks.thought(branch.text):
            branch = solver.cut_text(branch, len(branch.written) - half_of(marks.end_of_thinking, branch.written))
            for mark in [marks.end_of_thinking] if branch.at(marks.step) else [marks.step, marks.end_of_thinking]:
                [branch] = solver.append([branch], mark)
            trace.append(Event("cap", branch.text))
            branch = self.answered(solver, branch, manner)
        else:
            [branch] = solver.write([branch], manner)
        last = Event("sample", branch.text, answer_of(marks, branch, self.style), chosen=True)
        return Found(branch, self.style, [*trace, last])

    def extended(self, solver: Solver, branch: Branch, key: Key) -> Branch:
        """The text with something else in place of the end of its thinking, which may be of several tokens."""
        open_again = solver.cut_text(branch, branch.written.rindex(solver.marks.end_of_thinking))
        if self.put == "empty":
            return open_again.again(key[-1])
        [longer] = solver.append([open_again], solver.marks.wait if self.put == "wait" else solver.random_text(key))
        return longer

    def answered(self, solver: Solver, branch: Branch, manner: Manner) -> Branch:
        """The text with an answer behind a forced end, up to where the thinking is ended once more."""
        mark = solver.marks.end_of_thinking
        [branch] = solver.write([branch], manner, until=[mark])
        again = branch.written.find(mark, branch.written.index(mark) + len(mark))
        return branch if again < 0 else solver.cut_text(branch, again)

    def thinking(self, manner: Manner, solver: Solver, begun: Branch) -> int:
        """Most tokens of the thinking behind a prompt. Raises ValueError where a cap leaves no room for an answer."""
        if not self.cap:
            return manner.limit
        closed, room = begun, solver.room(begun)
        for mark in (solver.marks.step, solver.marks.end_of_thinking):  # either may be of several tokens
            [closed] = solver.append([closed], mark)
        forced = len(closed.tokens) + 1  # one of the answer
        if self.cap + forced > manner.limit:
            raise ValueError(
                f"strategy {self.name}: cap={self.cap} leaves no room for an answer within {manner.limit} new tokens; "
                f"allow {self.cap + forced} or more, or cap earlier"
            )
        if room <= forced:
            raise ValueError(
                f"strategy {self.name}: behind this prompt there is room for {room} tokens, and a forced answer takes "
                f"{forced + 1}: shorten the problem"
            )
        return min(self.cap, room - forced)  # as the paper keeps some tokens free for the answer

    def deepened(self, manner: Manner) -> Manner:
        """The manner with the budget of iterations."""
        deep = replace(manner, iterations=self.most or manner.iterations)
        if not self.least:
            return deep
        rule = as_exit(manner.exit)
        if rule is None:
            raise ValueError(
                f"strategy {self.name}: least={self.least} is of an exit rule; give one, exit=latent:0.03, to a "
                "model with a loop"
            )
        return replace(deep, exit=replace(rule, minimum=max(self.least, rule.minimum)))


def half_of(mark: str, text: str) -> int:
    """How many characters of a mark, not all of them, a text ends with."""
    return next((length for length in range(len(mark) - 1, 0, -1) if text.endswith(mark[:length])), 0)
