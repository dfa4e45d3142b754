"""Solver: what a strategy needs of whoever writes, and the values that pass between them.

    branch = solver.begin("1 + 2 <chain>", key=(seed,))         a prompt, and nothing behind it yet
    branches = solver.write([branch] * 8, manner, until=["<step>"])   each goes on until a mark, an end or a limit
    branch = solver.cut(branch, 3)                              roll back to its first three tokens
    branch = solver.cut_text(branch, 12)                        roll back to its first twelve characters
    [branch] = solver.append([branch], "<wait>")                put there, not drawn
    rewards = solver.score([branch], manner)                    process reward at the last token

A branch is a value: writing on makes a new one and leaves the old as it was, so that to fork is to name a branch twice,
and to take something back is to use an earlier one. What a solver has computed of a branch goes along in its `memory`:
nothing is read twice.

What is drawn for a branch is a function of its key and of the place in it, never of what is written beside it. Of a
branch that is named several times in a call, the first keeps its key and the others get keys of their own.

Shapes: B lines that are written together, V vocabulary.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from numbers import Integral, Real
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from mull.inference.exits import Exit
from mull.inference.sampling import Draw, seed_from
from mull.inference.strategies.meter import Meter

Key = tuple[int, ...]
Style = Literal["direct", "chain", "draft", "correct", "attempts", "search"]


@dataclass(frozen=True)
class Marks:
    """The texts by which a writer structures an answer; the defaults are the control words of mull's own tasks.

    A style stands behind the problem and says how to write: `direct` the answer at once, `chain` every step in full,
    `draft` the results of the steps only, `correct` with steps that are doubted and written anew, `attempts` one after
    another, `search` with steps that are taken back. The others stand in the answer.

    Attributes:
        step: ends a step.
        end_of_thinking: what follows is the answer.
        wait: what was just written is doubted.
        switch: another attempt begins.
        backtrack: the last step is taken back.
        between: stands between a problem and its style.

    Raises:
        ValueError: one that stands in the answer is empty; a style may be, for models that need no word for it.
    """

    direct: str = "<direct>"
    chain: str = "<chain>"
    draft: str = "<draft>"
    correct: str = "<correct>"
    attempts: str = "<attempts>"
    search: str = "<search>"
    step: str = "<step>"
    end_of_thinking: str = "</think>"
    wait: str = "<wait>"
    switch: str = "<switch>"
    backtrack: str = "<backtrack>"
    between: str = " "

    def __post_init__(self) -> None:
        for name in ("step", "end_of_thinking", "wait", "switch", "backtrack"):
            if not getattr(self, name):
                raise ValueError(f"the mark {name} is empty: nobody could tell where it stands; give a text")

    def prompt(self, text: str, style: Style) -> str:
        """A problem with its style behind it."""
        return f"{text}{self.between}{getattr(self, style)}"

    def answer(self, written: str, style: Style = "chain") -> str:
        """What stands behind the end of the thinking, the first one: who thinks on has not answered. Where it has not
        ended: in the style `direct` all of it, in the others nothing."""
        _, ended, behind = written.partition(self.end_of_thinking)
        if ended:
            return behind.strip()
        return written.strip() if style == "direct" else ""

    def thought(self, written: str) -> bool:
        """Whether the thinking has ended."""
        return self.end_of_thinking in written


@dataclass(frozen=True)
class Problem:
    """What is asked.

    Attributes:
        text: without a style.
        check: the exact checker of answers, where there is one; nobody but the scorer `oracle` may ask it.
        steps: of a written text, whether the answer can still be reached after each of its steps; likewise.
        difficulty: of the task that it is of, where it is known.
    """

    text: str
    check: Callable[[str], bool] | None = None
    steps: Callable[[str], list[bool]] | None = None
    difficulty: int | None = None


class Token(NamedTuple):
    """One token behind a prompt.

    Attributes:
        text: as it stands in the text, blanks before it included; empty for a token that ends an answer.
        id: of the writer's vocabulary; -1 where it does not say.
        log_probability: of the token under the model itself, before temperature, filters and hooks; 0 where it was
            put there, None where the writer does not tell.
        drawn: whether it was drawn; False for what was put there.
        iterations: spent on choosing it.
        residual: how far the last of them moved the state; None where that is not known.
    """

    text: str
    id: int = -1
    log_probability: float | None = 0.0
    drawn: bool = True
    iterations: int = 0
    residual: float | None = None


@dataclass(frozen=True)
class Branch:
    """A prompt and what was written behind it.

    Attributes:
        prompt: the text, its style included.
        key: what its draws depend on, beside their place.
        tokens: behind the prompt, drawn or put there.
        ended: whether nothing more can be written: it met a token that ends answers, or there is no room left.
        memory: what the solver keeps of it; nobody else looks there.
    """

    prompt: str
    key: Key = ()
    tokens: tuple[Token, ...] = ()
    ended: bool = False
    memory: Any = field(default=None, compare=False, repr=False)

    @property
    def written(self) -> str:
        """What stands behind the prompt, marks and outer blanks included."""
        return "".join(token.text for token in self.tokens)

    @property
    def text(self) -> str:
        """The same without outer blanks."""
        return self.written.strip()

    @property
    def log_probability(self) -> float:
        """Of all that was drawn, as far as it is told."""
        return sum(token.log_probability or 0.0 for token in self.tokens if token.drawn)

    @property
    def iterations(self) -> int:
        """Spent on choosing its tokens."""
        return sum(token.iterations for token in self.tokens)

    @property
    def residual(self) -> float | None:
        """How far the last iteration moved the state that its last token was chosen from."""
        return self.tokens[-1].residual if self.tokens else None

    def ends(self, mark: str) -> list[int]:
        """How many tokens stand up to the end of each place where a mark is written."""
        lengths = list(accumulate(len(token.text) for token in self.tokens))
        places = [match.end() for match in re.finditer(re.escape(mark), self.written)]
        return list(dict.fromkeys(bisect_left(lengths, place) + 1 for place in places))

    def at(self, mark: str) -> bool:
        """Whether a mark is the last that was written."""
        return self.ends(mark)[-1:] == [len(self.tokens)]

    def thinking(self, mark: str) -> int:
        """How many tokens the thinking has, up to the last one that was drawn before the mark that ends it: what is put
        there to close a thinking that was cut off is none of it."""
        end, start, found = self.written.find(mark), 0, 0
        end = len(self.written) if end < 0 else end
        for number, token in enumerate(self.tokens, 1):
            if start >= end:
                break
            own = token.text[: end - start]  # a mark may begin within a token
            if token.drawn and (own == token.text or own.strip()):
                found = number
            start += len(token.text)
        return found

    def again(self, number: int) -> Branch:
        """The same with another key: what is drawn for it is drawn afresh."""
        return replace(self, key=(*self.key, len(self.tokens), -1 - number))


@dataclass(frozen=True)
class Manner:
    """How everything is written: how deep, how it is drawn, how much at most.

    Attributes:
        iterations: of every token, or the most under an exit rule; None is the model's own count.
        exit: a rule that ends thinking early, `latent:0.03`.
        temperature: 0 takes the likeliest token.
        top_k: draw among so many of the likeliest tokens; see `mull.inference.Draw` for this and the next two.
        top_p: draw among the likeliest tokens that make up this mass.
        min_p: draw among tokens at least so many times as likely as the likeliest.
        limit: most tokens behind a prompt, drawn or put there.
        usual: whether nobody said a temperature, so that a strategy takes its own.
    """

    iterations: int | None = None
    exit: str | Exit | None = None
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    limit: int = 256
    usual: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.limit, Integral) or isinstance(self.limit, bool):
            raise ValueError(f"a limit of {self.limit!r} tokens is no integer; give one of at least 1")
        if self.limit < 1:
            raise ValueError(f"a limit of {self.limit} tokens leaves no room for an answer; give 1 or more")

    def at(self, temperature: float | None) -> Manner:
        """The same at a temperature, where nobody said one."""
        return self if temperature is None or not self.usual else replace(self, temperature=temperature, usual=False)

    def greedy(self) -> Manner:
        """The same without chance."""
        return replace(self, temperature=0.0, top_k=None, top_p=None, min_p=None)

    def draw(self, lines: Sequence[Line] = ()) -> Draw:
        """How the next token of each line is drawn. Raises ValueError for what is out of range."""
        each = None
        if isinstance(self.temperature, Real) and self.temperature > 0:
            seeds = [seed_of(line.branch.key, len(line.branch.tokens) + len(line.new)) for line in lines]
            each = [torch.Generator().manual_seed(seed) for seed in seeds]
        return Draw(each, self.temperature, self.top_k, self.top_p, self.min_p)


class Line:
    """A branch while it is written on, for hooks to look at; `new` are its tokens of this call."""

    def __init__(self, branch: Branch) -> None:
        self.branch, self.new = branch, list[Token]()

    @property
    def tokens(self) -> list[Token]:
        """All behind the prompt."""
        return [*self.branch.tokens, *self.new]


Before = Callable[[Sequence[Line], Tensor], Tensor]  # logits (B, V) of what comes next in each line -> logits
After = Callable[[Line, int], int]  # the id that was drawn for a line -> the id that is written


class Solver(ABC):
    """Who writes. See the head of this file.

    Attributes:
        marks: by which it structures what it writes.
        meter: what it has spent.
        gives_logits: whether `before` and `after` can be had.
    """

    marks: Marks
    meter: Meter
    gives_logits: ClassVar[bool] = True

    @abstractmethod
    def begin(self, prompt: str, key: Key = ()) -> Branch:
        """A prompt with nothing behind it; it is read when something is to be written. Raises ValueError for a text
        that cannot be read, or leaves no room."""

    @abstractmethod
    def write(
        self,
        branches: Sequence[Branch],
        manner: Manner,
        until: Sequence[str] = (),
        limit: int | None = None,
        before: Before | None = None,
        after: After | None = None,
    ) -> list[Branch]:
        """Go on with each branch, in this order.

        Args:
            branches: one that is named again is forked; one that has ended comes back as it is.
            manner: how.
            until: a branch stops behind the first of these marks.
            limit: a branch stops at so many tokens behind its prompt, those that it has included; None is the manner's.
            before: hook before sampling: it may change the logits.
            after: hook after sampling: it may put another token in place of the one that was drawn.
        """

    def draw(
        self, lines: Sequence[Line], logits: Tensor, manner: Manner, before: Before | None, after: After | None
    ) -> list[int]:
        """The next token of each line, by its logits (B, V) and the hooks of `write`; for solvers that have logits."""
        tokens = manner.draw(lines).choose(logits if before is None else before(lines, logits)).tolist()
        return tokens if after is None else list(map(after, lines, tokens))

    @abstractmethod
    def append(self, branches: Sequence[Branch], text: str) -> list[Branch]:
        """Put a text behind each branch, which goes on from there even if it had ended. Raises ValueError where there
        is no room."""

    def cut(self, branch: Branch, tokens: int) -> Branch:
        """The branch as it was after so many tokens. Raises ValueError where it has fewer."""
        if not 0 <= tokens <= len(branch.tokens):
            raise ValueError(f"the branch has {len(branch.tokens)} tokens and cannot be cut to {tokens}")
        return branch if tokens == len(branch.tokens) else self.shortened(branch, tokens)

    def shortened(self, branch: Branch, tokens: int) -> Branch:
        """What `cut` gives where some tokens go: for a solver to write, unless it writes `cut` itself."""
        raise NotImplementedError

    def cut_text(self, branch: Branch, length: int) -> Branch:
        """The branch with the first `length` characters of what is written, for marks that are of several tokens or of
        a part of one. Of a token that the cut goes through, what it holds before the cut is put there anew, blanks
        alone aside."""
        kept, start = 0, 0
        for token in branch.tokens:
            if start + len(token.text) > length:
                break
            kept, start = kept + 1, start + len(token.text)
        shorter, rest = self.cut(branch, kept), branch.written[start:length]
        return self.append([shorter], rest)[0] if rest.strip(" ") else shorter

    @abstractmethod
    def room(self, branch: Branch) -> int:
        """Tokens for which there is room behind a branch."""

    def check(self, manner: Manner, marks: Sequence[str] = ()) -> None:  # noqa: B027  # some write in any manner
        """Raise a ValueError where it cannot write in this manner, or has no such marks; nothing is written."""

    def most_iterations(self, manner: Manner) -> int | None:
        """Most iterations of a token in this manner; None where it turns no loop, whose residuals it could tell."""
        return None

    @property
    def refuses_score(self) -> str | None:
        """Why there is no process reward, in one line; None where there is."""
        return "no process reward: the model has no reward head; train one with value_head: true, or use another scorer"

    def score(self, branches: Sequence[Branch], manner: Manner) -> list[float]:
        """The process reward at the last token of each branch, from 0 to 1. Raises ValueError where there is none."""
        raise ValueError(self.refuses_score)

    def first_tokens(self, text: str) -> list[int]:
        """The ids of tokens that begin a text, as hooks need them."""
        raise ValueError("this writer does not show its logits: use another strategy")

    def random_text(self, key: Key) -> str:
        """A token drawn from all, as text."""
        raise ValueError("this writer has no vocabulary to draw from: name the text instead")


def forked(branches: Sequence[Branch]) -> list[Branch]:
    """The same branches, with keys of their own for those whose key one before has, such as a branch named again."""
    seen: Counter[tuple[str, Key, int]] = Counter()
    found = []
    for branch in branches:
        place = (branch.prompt, branch.key, len(branch.tokens))
        copy = seen[place]
        seen[place] += 1
        found.append(replace(branch, key=(*branch.key, len(branch.tokens), copy)) if copy else branch)
    return found


def seed_of(key: Key, place: int) -> int:
    """The seed of the draw at a place behind a prompt."""
    return seed_from(f"{','.join(map(str, key))} {place}")
