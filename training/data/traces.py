"""Traces: how the thinking behind an answer is written, in six styles, and what of it is learned.

A control word at the end of a question names the style. Behind it stand steps, each closed by <step>, then </think>,
the answer and <end>; behind <direct> stands the answer alone.

    direct      the answer at once
    chain       every step in full
    draft       of every step the result alone                                (Chain of Draft, arXiv 2502.18600)
    correct     a chain in which some steps are wrong, each followed by <wait> and the right step     (arXiv 2501.19393)
    attempts    attempts that are given up, each followed by <switch>, then a whole chain             (arXiv 2501.18585)
    search      a chain with wrong actions, as many <backtrack> behind them as they are, then on      (arXiv 2502.04404)

Nothing wrong is learned: tokens of wrong steps are no labels. What follows them is learned: <wait>, <switch>,
<backtrack>, and the right step. Every <step> also says whether the answer can still be reached from what stands before
it, which is what a process reward learns (Snell et al., arXiv 2408.03314; Liu et al., arXiv 2502.06703).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import numpy as np

STEP, END_OF_THINKING = "<step>", "</think>"  # end a step, and the thinking
WAIT, SWITCH, BACKTRACK = "<wait>", "<switch>", "<backtrack>"  # doubt the last step, begin anew, take it back
STYLES = ("direct", "chain", "draft", "correct", "attempts", "search")
STYLE_WORDS = tuple(f"<{style}>" for style in STYLES)
MARKS = (*STYLE_WORDS, STEP, END_OF_THINKING, WAIT, SWITCH, BACKTRACK)  # the words that a traced task adds
NOT_JUDGED = -1.0  # where no step ends


class Step(NamedTuple):
    """A step of a derivation as token ids: in full, and its result alone."""

    full: list[int]
    short: list[int]


class Draws:
    """Random numbers of one item's trace, drawn many at once: a generator's own calls cost more than all the rest."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._left: list[float] = []

    def number(self) -> float:
        """Uniform in [0, 1)."""
        if not self._left:
            self._left = self._rng.random(32).tolist()
        return self._left.pop()

    def chance(self, probability: float) -> bool:
        """Whether something of this probability happens."""
        return self.number() < probability

    def below(self, count: int) -> int:
        """One of 0 .. count - 1."""
        return int(self.number() * count)


class Derivation(ABC):
    """How one item is solved: its right steps, its answer, and ways to go astray."""

    steps: list[Step]
    answer: list[int]

    @abstractmethod
    def astray(self, place: int, most: int, draws: Draws) -> list[Step]:
        """A wrong step in place of right step `place`, the right ones before it done, and at most `most` - 1 steps that
        go on from it. After the first the answer can no longer be reached, unless it is taken back."""


class Traces:
    """What a trace may hold beside the right steps.

    Args:
        wrong: chance of a wrong step at each step of the styles `correct` and `search`, 0 to 1.
        doubts: chance of a needless <wait> after a right step of the style `correct`, which is then written again.
            Nobody learns to doubt it, but what to do when something makes a model doubt (budget forcing).
        abandoned: chance that another attempt is given up before the last one, in the style `attempts`.
        premature: share of the attempts given up that were right so far; the others have gone astray. 1 is the matched
            set where switching is always premature, 0 the one where a first idea that is given up is a dead end.
        learn_dead_ends: steps that have gone astray in the style `attempts` are learned too, so that a model has first
            ideas that are dead ends.
        detours: at most so many steps of a trace are written in vain; it bounds the length of a row.
        noise: chance that the judgement of a step is turned round in training, for rewards that are wrong by a known
            amount.

    Raises ValueError for a share outside 0 to 1, and for fewer than 0 detours.
    """

    def __init__(
        self,
        wrong: float = 0.25,
        doubts: float = 0.0,
        abandoned: float = 0.5,
        premature: float = 0.5,
        learn_dead_ends: bool = False,
        detours: int = 2,
        noise: float = 0.0,
    ) -> None:
        shares = {"wrong": wrong, "doubts": doubts, "abandoned": abandoned, "premature": premature, "noise": noise}
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise ValueError(f"{name} of the traces is {share}: it must be between 0 and 1")
        if detours < 0:
            raise ValueError(f"detours of the traces is {detours}: it must be 0 or more")
        self.wrong, self.doubts, self.abandoned, self.premature = wrong, doubts, abandoned, premature
        self.learn_dead_ends, self.detours, self.noise = learn_dead_ends, detours, noise

    def key(self) -> tuple[object, ...]:
        """What decides the traces of a stream; the judgements' noise has a stream of its own."""
        return tuple(value for name, value in vars(self).items() if name != "noise")


class Mixture:
    """Styles and their weights: {"direct": 1, "chain": 2} writes two chains for each direct answer.

    Raises ValueError for an unknown style, a weight below 0, and weights that are all 0.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        unknown = [style for style in weights if style not in STYLES]
        if unknown:
            raise ValueError(f"unknown style {unknown[0]!r}: use some of {', '.join(STYLES)}")
        if not all(0 <= weight < float("inf") for weight in weights.values()) or not sum(weights.values()):
            raise ValueError(f"styles must have weights of at least 0, and not all of them 0: {dict(weights)}")
        total, self._bounds, reached = sum(weights.values()), list[tuple[float, str]](), 0.0
        for style in STYLES:
            if weights.get(style):
                reached += weights[style] / total
                self._bounds.append((reached, style))

    @property
    def styles(self) -> tuple[str, ...]:
        """Those that are drawn at all."""
        return tuple(style for _, style in self._bounds)

    def key(self) -> tuple[object, ...]:
        """What decides which style an item has."""
        return tuple((style, round(bound, 9)) for bound, style in self._bounds)

    def draw(self, draws: Draws) -> str:
        number = draws.number()
        return next((style for bound, style in self._bounds if number < bound), self._bounds[-1][1])


class Words(NamedTuple):
    """Token ids of the words that structure a trace."""

    styles: dict[str, int]
    step: int
    end_of_thinking: int
    wait: int
    switch: int
    backtrack: int
    end: int


class Written:
    """What stands behind a question, the style's word first: tokens, whether each is learned, and at each <step>
    whether the answer can still be reached (1 or 0)."""

    writers: ClassVar[dict[str, str]] = {style: f"write_{style}" for style in STYLES}

    def __init__(self, derivation: Derivation, style: str, words: Words, traces: Traces, draws: Draws) -> None:
        self.derivation, self.words, self.traces, self.draws = derivation, words, traces, draws
        self.tokens, self.learned, self.values = [words.styles[style]], [False], [NOT_JUDGED]
        getattr(self, self.writers[style])()
        self.put(derivation.answer)
        self.put([words.end])

    def put(self, tokens: list[int], learned: bool = True, value: float = NOT_JUDGED) -> None:
        """Add tokens; the last of them is judged, where there is a judgement."""
        self.tokens += tokens
        self.learned += [learned] * len(tokens)
        self.values += [NOT_JUDGED] * (len(tokens) - 1) + [value]

    def put_right(self, first: int, last: int) -> None:
        """Right steps number `first` to `last` - 1, in full."""
        for step in self.derivation.steps[first:last]:
            self.put([*step.full, self.words.step], value=1.0)

    def put_astray(self, place: int, most: int, learned: bool = False) -> int:
        """Wrong steps in place of right step `place`; says how many."""
        astray = self.derivation.astray(place, most, self.draws)
        for step in astray:
            self.put([*step.full, self.words.step], learned, value=0.0)
        return len(astray)

    def write_direct(self) -> None:
        """Nothing before the answer."""

    def write_chain(self) -> None:
        self.put_right(0, len(self.derivation.steps))
        self.put([self.words.end_of_thinking])

    def write_draft(self) -> None:
        for step in self.derivation.steps:
            self.put([*step.short, self.words.step], value=1.0)
        self.put([self.words.end_of_thinking])

    def write_correct(self) -> None:
        left = self.traces.detours
        for place in range(len(self.derivation.steps)):
            if left and self.draws.chance(self.traces.wrong):
                self.put_astray(place, 1)
                self.put([self.words.wait])
                left -= 1
            elif left and self.draws.chance(self.traces.doubts):
                self.put_right(place, place + 1)
                self.put([self.words.wait], learned=False)
                left -= 1
            self.put_right(place, place + 1)
        self.put([self.words.end_of_thinking])

    def write_attempts(self) -> None:
        left, count = self.traces.detours, len(self.derivation.steps)
        while left and self.draws.chance(self.traces.abandoned):
            if count > 1 and self.draws.chance(self.traces.premature):
                done = 1 + self.draws.below(min(left, count - 1))
                self.put_right(0, done)
            else:
                length = 1 + self.draws.below(min(left, count))
                wrong = 1 + self.draws.below(length)
                self.put_right(0, length - wrong)
                done = length - wrong + self.put_astray(length - wrong, wrong, self.traces.learn_dead_ends)
            self.put([self.words.switch])
            left -= done
        self.write_chain()

    def write_search(self) -> None:
        left = self.traces.detours
        for place in range(len(self.derivation.steps)):
            while left and self.draws.chance(self.traces.wrong):
                gone = self.put_astray(place, 1 + self.draws.below(min(2, left)))
                self.put([self.words.backtrack] * gone)
                left -= gone
            self.put_right(place, place + 1)
        self.put([self.words.end_of_thinking])
