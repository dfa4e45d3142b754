"""TracedTask: a task whose items can be laid out with their thinking, in the styles of traces.py.

A traced task says what its questions are, how an item is derived and whether steps that are written can lead to the
answer. This file does the rest: which style an item has, rows of one width, judgements of steps, and problems without a
style for those who choose one. With `styles: null` a task is what it is without traces, to the last token.

Items, splits and their streams are those of task.py. The style of an item, and where its trace goes astray, come from a
stream of their own; so an item that belongs to a split does in every style.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np

from mull.training.data.streams import Stream
from mull.training.data.task import END, IGNORE, Split, Task
from mull.training.data.traces import (
    BACKTRACK,
    END_OF_THINKING,
    MARKS,
    NOT_JUDGED,
    STEP,
    STYLE_WORDS,
    STYLES,
    SWITCH,
    WAIT,
    Derivation,
    Draws,
    Mixture,
    Traces,
    Words,
    Written,
)


class Problem(NamedTuple):
    """A question without a style.

    Attributes:
        text: the question; the word of a style may be put behind it.
        check: whether an answer to it is right.
        steps: whether the answer can still be reached after each <step> of a text that is written behind it.
    """

    text: str
    check: Callable[[str], bool]
    steps: Callable[[str], list[bool]]


class Lengths(NamedTuple):
    """Tokens of an item's parts, which are the same for all items of a difficulty.

    Attributes:
        question: of the question, without a style.
        steps: of each right step in full.
        longest: of the longest step, right or wrong, in full.
        shorts: of each right step's result alone.
        answer: of the answer.
    """

    question: int
    steps: tuple[int, ...]
    longest: int
    shorts: tuple[int, ...]
    answer: int


class TracedTask(Task):
    """Base of the tasks with traces. A subclass calls `trace` in its constructor, and defines the hooks below beside
    those of `Task`, in place of `symbols`, `stop_symbols`, `lay_out`, `check` and `answer_length`."""

    mixture: Mixture | None = None
    traces: Traces

    # The hooks ------------------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def own_symbols(self) -> tuple[str, ...]:
        """The vocabulary without the words of traces."""

    @property
    @abstractmethod
    def own_stop_symbols(self) -> tuple[str, ...]:
        """The symbols that end an answer without traces."""

    @abstractmethod
    def lay_out_plainly(self, items: np.ndarray, difficulty: int) -> tuple[np.ndarray, np.ndarray]:
        """`Task.lay_out` without traces: the question, then its answer."""

    @abstractmethod
    def own_answer_length(self, difficulty: int) -> int:
        """`Task.answer_length` without traces."""

    @abstractmethod
    def judge(self, question: str, answer: str) -> bool:
        """`Task.check` without traces."""

    @abstractmethod
    def lengths(self, difficulty: int) -> Lengths:
        """Tokens of the parts of every item of a difficulty."""

    @abstractmethod
    def derivations(self, items: np.ndarray, difficulty: int) -> list[Derivation]:
        """How each of the items (B, ...) is solved."""

    @abstractmethod
    def follower(self, question: str) -> Callable[[list[list[str]]], bool]:
        """Whether the answer to a question can still be reached from steps, each a list of words.

        Raises ValueError for a text that is not a question of this task.
        """

    # What follows ---------------------------------------------------------------------------------------------------

    def trace(self, styles: dict[str, float] | None, traces: Traces | None) -> None:
        """Set how items are laid out; to be called by the constructor."""
        self.mixture = None if styles is None else Mixture(styles)
        if traces is not None and styles is None:
            raise ValueError("traces are of the styles that a task writes: name styles, or leave traces out")
        self.traces = traces or Traces()

    @property
    def symbols(self) -> tuple[str, ...]:
        own = self.own_symbols
        return own if self.mixture is None else (*own, *(() if END in own else (END,)), *MARKS)

    @property
    def stop_symbols(self) -> tuple[str, ...]:
        return self.own_stop_symbols if self.mixture is None else (END,)

    def lay_out(self, items: np.ndarray, difficulty: int) -> tuple[np.ndarray, np.ndarray]:
        return self.lay_out_plainly(items, difficulty)

    def answer_length(self, difficulty: int) -> int:
        if self.mixture is None:
            return self.own_answer_length(difficulty)
        return self.width(difficulty) - self.lengths(difficulty).question

    def width(self, difficulty: int) -> int:
        """T: the longest that a row of these styles may be."""
        question, steps, longest, shorts, answer = self.lengths(difficulty)
        assert self.mixture is not None
        chain = sum(steps) + len(steps) + 1  # every <step>, and </think>
        detours = self.traces.detours * (longest + 2)  # <step>, and the mark that follows
        by_style = {"direct": 0, "chain": chain, "draft": sum(shorts) + len(shorts) + 1}
        return question + 1 + max(by_style.get(style, chain + detours) for style in self.mixture.styles) + answer

    @cached_property
    def words(self) -> Words:
        """Token ids of the words that structure a trace."""
        ids = {symbol: i for i, symbol in enumerate(self.symbols)}
        styles = {style: ids[word] for style, word in zip(STYLES, STYLE_WORDS, strict=True)}
        return Words(styles, *(ids[word] for word in (STEP, END_OF_THINKING, WAIT, SWITCH, BACKTRACK, END)))

    def batch(
        self, split: Split, seed: int, indices: Iterable[int], difficulty: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        if self.mixture is None:
            return super().batch(split, seed, indices, difficulty)
        columns = self.columns(split, seed, indices, difficulty)
        return columns["input_ids"], columns["labels"]

    def columns(
        self, split: Split, seed: int, indices: Iterable[int], difficulty: int | None = None
    ) -> dict[str, np.ndarray]:
        """With traces also `values` (B, T) float32: at each <step> whether the answer can still be reached, 1 or 0, and
        elsewhere -1."""
        if self.mixture is None:
            return super().columns(split, seed, indices, difficulty)
        difficulty, indices = self.resolve(difficulty), list(indices)
        items = self.items(split, seed, indices, difficulty)
        asked = self.lengths(difficulty).question
        input_ids = np.full((len(indices), self.width(difficulty) + 1), self.words.end, dtype=np.int64)
        questions, scored = self.lay_out_plainly(items, difficulty)
        input_ids[:, :asked] = questions[:, :asked]
        labels = np.full_like(input_ids, IGNORE)
        if self.every and split == "train":
            labels[:, : asked - 1] = scored[:, : asked - 1]  # values inside the question; at its end the trace begins
        values = np.full(input_ids.shape, NOT_JUDGED, dtype=np.float32)
        for row, written in enumerate(self.written(items, split, seed, indices, difficulty)):
            last = asked + len(written.tokens)
            input_ids[row, asked:last] = written.tokens
            values[row, asked:last] = written.values
            labels[row, asked - 1 : last - 1] = np.where(written.learned, written.tokens, IGNORE)
        if self.traces.noise and split == "train":
            stream = Stream(self.name, "noise", split, seed, difficulty)
            turned = np.stack([stream.at(index).random(values.shape[1]) for index in indices]) < self.traces.noise
            values = np.where((values != NOT_JUDGED) & turned, 1 - values, values)
        return {"input_ids": input_ids[:, :-1], "labels": labels[:, :-1], "values": values[:, :-1]}

    def written(
        self, items: np.ndarray, split: Split, seed: int, indices: list[int], difficulty: int
    ) -> Iterable[Written]:
        """What stands behind the questions of items, each in the style that its own stream draws."""
        assert self.mixture is not None
        stream = Stream(self.name, "trace", self.mixture.key(), self.traces.key(), split, seed, difficulty)
        for index, derivation in zip(indices, self.derivations(items, difficulty), strict=True):
            draws = Draws(stream.at(index))
            style = self.mixture.draw(draws)
            yield Written(derivation, style, self.words, self.traces, draws)

    def prompt(self, split: Split, seed: int, index: int, difficulty: int | None = None) -> tuple[str, str]:
        if self.mixture is None:
            return super().prompt(split, seed, index, difficulty)
        difficulty = self.resolve(difficulty)
        row = self.batch(split, seed, [index], difficulty)[0][0]
        asked = self.lengths(difficulty).question
        words = self._words(row)
        written = words[asked + 1 :]
        return " ".join(words[: asked + 1]), " ".join(written[: written.index(END)] if END in written else written)

    def check(self, prompt: str, answer: str) -> bool:
        """Whether an answer is right. The prompt may end with a style; of an answer behind its thinking, what stands
        behind the thinking counts."""
        if self.mixture is None:
            return self.judge(prompt, answer)
        answer = answer.strip().removesuffix(END).rpartition(END_OF_THINKING)[2]
        return self.judge(without_style(prompt), answer)

    def reachable(self, prompt: str, written: str) -> list[bool]:
        """After each <step> of a text behind a prompt: can the answer still be reached from the steps that stand?

        <wait> and <backtrack> take the last step back, <switch> all of them; a text without its last <step> counts up
        to the last one, and what stands behind </think> does not count.
        """
        follows = self.follower(without_style(prompt))
        stands, step, found = list[list[str]](), list[str](), list[bool]()
        for word in written.split():
            if word == END_OF_THINKING:
                break
            if word == STEP:
                stands.append(step)
                found.append(follows(stands))
            elif word == SWITCH:
                stands.clear()
            elif word in (WAIT, BACKTRACK):
                del stands[-1:]
            elif word not in STYLE_WORDS:
                step.append(word)
                continue
            step = []
        return found

    def problems(self, split: Split, seed: int, wanted: int, difficulty: int | None = None) -> list[Problem]:
        """The first held-out items as problems without a style, as many as there are of `wanted`."""
        if self.mixture is None:
            raise ValueError(f"this {self.name} task writes no traces: name styles, as in styles: {{chain: 1}}")
        difficulty = self.resolve(difficulty)
        items = self.items(split, seed, range(self.available(split, seed, wanted, difficulty)), difficulty)
        asked = self.lay_out_plainly(items, difficulty)[0][:, : self.lengths(difficulty).question]
        texts = [" ".join(self._words(row)) for row in asked]
        return [Problem(text, partial(self.check, text), partial(self.reachable, text)) for text in texts]


def without_style(prompt: str) -> str:
    """A prompt without the style at its end."""
    question, _, last = prompt.rstrip().rpartition(" ")
    return question if last in STYLE_WORDS else prompt
