"""The contract of a synthetic task: items addressed by (split, seed, index), a tokenizer, and an exact checker.

A task says how to draw an *item* (the question itself, e.g. the bits), how to lay items out as tokens and labels, and
how to check an answer. This file does the rest: streams, disjoint splits, batches and prompts. Shapes: B items,
T positions; all items of one difficulty have the same T, so nothing is ever padded.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import cached_property
from hashlib import blake2b
from typing import ClassVar, Literal, NamedTuple, get_args

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

from mull.training.data.streams import Stream

IGNORE = -100  # label of a position that is not scored; the default ignore_index of torch's cross entropy
UNKNOWN = "<unk>"  # the token that the tokenizer gives for a symbol outside the vocabulary
START = "<start>"  # the first token of a prompt; a special token, which the tokenizer adds and nobody types
END = "<end>"  # the token after an answer or a document; a special token, which decoding leaves out

Split = Literal["train", "validation", "test"]
MAX_DIFFICULTY = 100_000  # items of it take seconds; a folder or a slip of the hand may ask for more
MAX_DRAWS = 2048  # an item of a split that owns 1/16 of the items is missed 2048 times with probability 4e-58


class Example(NamedTuple):
    """One item as the model sees it."""

    input_ids: np.ndarray  # (T,) int64
    labels: np.ndarray  # (T,) int64: labels[t] is the token to predict AT position t, or IGNORE; shift nothing


class Task(ABC):
    """Base of the tasks. A subclass sets the class variables and `default_difficulty`, and defines the hooks below.

    Every item is a pure function of (task, split, seed, index, difficulty). Splits are disjoint by construction: a hash
    of the item's canonical form says which split owns it (1/16 test, 1/16 validation, the rest train), whatever the
    seed, and an item is redrawn from its own stream until the split asked for owns it.
    """

    name: ClassVar[str]
    difficulty_name: ClassVar[str]  # what a difficulty counts, e.g. "length"
    min_difficulty: ClassVar[int] = 1
    default_difficulty: int  # used if the caller names none

    # The hooks ------------------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def symbols(self) -> tuple[str, ...]:
        """The vocabulary; no symbol holds a blank, and a symbol's index is its token id."""

    @property
    @abstractmethod
    def stop_symbols(self) -> tuple[str, ...]:
        """The symbols that end a generated answer."""

    @abstractmethod
    def draw(self, rng: np.random.Generator, difficulty: int) -> np.ndarray:
        """A random item, an integer array of one shape per difficulty."""

    @abstractmethod
    def lay_out(self, items: np.ndarray, difficulty: int) -> tuple[np.ndarray, np.ndarray]:
        """Items (B, ...) as input_ids and labels, each (B, T) int64, labels aligned as in `Example`."""

    @abstractmethod
    def check(self, prompt: str, answer: str) -> bool:
        """Whether `answer` is right, worked out from the text of the prompt alone. A closing <end> may be left out.

        Raises ValueError for a text that is not a prompt of this task; a malformed answer is merely wrong.
        """

    def options(self) -> tuple[object, ...]:
        """Constructor options that change what an item of given difficulty is; they are part of the stream's key."""
        return ()

    def canonical(self, item: np.ndarray) -> bytes:
        """The bytes that decide an item's split: equal for items that are the same question."""
        return item.astype(np.uint8).tobytes()

    def answer_length(self, difficulty: int) -> int:  # noqa: ARG002
        """The number of labels, counted from the last, that are the answer to the prompt."""
        return 1

    # What they make -------------------------------------------------------------------------------------------------

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Turns words between blanks into ids. An unknown word becomes <unk>, whose id follows those of the symbols."""
        ids = {symbol: i for i, symbol in enumerate((*self.symbols, UNKNOWN))}
        tokenizer = Tokenizer(WordLevel(ids, unk_token=UNKNOWN))
        tokenizer.pre_tokenizer = WhitespaceSplit()
        tokenizer.add_special_tokens([special for special in (START, END) if special in ids])
        if START in ids:
            tokenizer.post_processor = TemplateProcessing(f"{START} $A", special_tokens=[(START, ids[START])])
        return tokenizer

    @property
    def stop_tokens(self) -> tuple[int, ...]:
        """The token ids of `stop_symbols`."""
        return tuple(self.symbols.index(symbol) for symbol in self.stop_symbols)

    def encode(self, text: str) -> np.ndarray:
        """The token ids (T,) int64 of a text, START included. Unlike the tokenizer, this refuses an unknown symbol.

        Raises ValueError, which names the symbol and its position.
        """
        known = {symbol: i for i, symbol in enumerate(self.symbols)}
        words = text.split()
        for place, word in enumerate(words):
            if word not in known:
                raise ValueError(
                    f"unknown symbol {word!r} at position {place}: the {self.name} task knows {' '.join(self.symbols)} "
                    "(put blanks between symbols)"
                )
        opening = [START] if START in known else []
        return np.array([known[word] for word in opening + words], dtype=np.int64)

    def batch(
        self, split: Split, seed: int, indices: Iterable[int], difficulty: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """input_ids and labels, each (B, T) int64, of the items at `indices`. A row does not depend on the others.

        Args:
            split: "train", "validation" or "test".
            seed: Names the stream together with the task, its options, the split and the difficulty.
            indices: Which items of the stream.
            difficulty: Difficulty of all of them; None means `default_difficulty`.

        Raises ValueError for an unknown split, and for a difficulty that the task does not have.
        """
        difficulty = self.resolve(difficulty)
        if split not in get_args(Split):
            raise ValueError(f"unknown split {split!r}: use one of {', '.join(get_args(Split))}")
        stream = Stream(self.name, *self.options(), split, seed, difficulty)
        items = [self._item(stream.at(index), split, difficulty) for index in indices]
        return self.lay_out(np.stack(items), difficulty)

    def example(self, split: Split, seed: int, index: int, difficulty: int | None = None) -> Example:
        """Item `index` of a stream: the batch of one, without its batch axis."""
        input_ids, labels = self.batch(split, seed, [index], difficulty)
        return Example(input_ids[0], labels[0])

    def prompt(self, split: Split, seed: int, index: int, difficulty: int | None = None) -> tuple[str, str]:
        """Prompt and answer of item `index` as text, without <start> and <end>, as `mull generate` shows them."""
        difficulty = self.resolve(difficulty)
        input_ids, labels = self.example(split, seed, index, difficulty)
        start = len(labels) - self.answer_length(difficulty)
        answer = [word for word in self._words(labels[start:]) if word != END]
        question = [word for word in self._words(input_ids[: start + 1]) if word != START]
        return " ".join(question), " ".join(answer)

    def resolve(self, difficulty: int | None) -> int:
        """The difficulty itself, or `default_difficulty` for None.

        Raises ValueError for one below `min_difficulty` or above MAX_DIFFICULTY; tasks with further limits extend this
        method.
        """
        difficulty = self.default_difficulty if difficulty is None else difficulty
        if difficulty < self.min_difficulty:
            raise ValueError(
                f"{self.difficulty_name} {difficulty} is too small for the {self.name} task: "
                f"use {self.min_difficulty} or more"
            )
        if difficulty > MAX_DIFFICULTY:
            raise ValueError(
                f"{self.difficulty_name} {difficulty} is too large for the {self.name} task: "
                f"use {MAX_DIFFICULTY:,} or less"
            )
        return difficulty

    def split_of(self, item: np.ndarray) -> Split:
        """The one split that an item belongs to."""
        digest = blake2b(self.canonical(item), digest_size=1, key=self.name.encode()).digest()
        return {0: "test", 1: "validation"}.get(digest[0] % 16, "train")  # type: ignore[return-value]

    def _item(self, rng: np.random.Generator, split: Split, difficulty: int) -> np.ndarray:
        for _ in range(MAX_DRAWS):
            item = self.draw(rng, difficulty)
            if self.split_of(item) == split:
                return item
        raise ValueError(
            f"the {self.name} task has too few items of {self.difficulty_name} {difficulty} for disjoint splits "
            f"(none of {MAX_DRAWS} draws belongs to {split}): use a larger {self.difficulty_name}"
        )

    def _words(self, ids: np.ndarray) -> list[str]:
        return [self.symbols[i] for i in ids]
