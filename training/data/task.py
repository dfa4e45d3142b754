"""The contract of a synthetic task: items addressed by (split, seed, index), a tokenizer, and an exact checker.

A task says how to draw an *item* (the question itself, e.g. the bits), how to lay items out as tokens and labels, and
how to check an answer. This file does the rest: streams, disjoint splits, batches and prompts. Shapes: B items,
T positions; all items of one difficulty have the same T, so nothing is ever padded.

What a test measures is unseen. An answer at position t is a function of the tokens up to t, so it is these that must
not occur in training with the same answer scored:

- where an item is scored after all of it has been read (addition), a hash of the item decides its split; so it does
  where answers stand in place of the question (mazes), for models whose tokens see the whole row;
- where it is scored on the way (parity, p_hop), a hash of its first `decided_by` symbols does, so that all rows with
  this beginning, however they go on and however long they are, are in one split; and in validation and test nothing is
  scored before the beginning is complete. In training everything is scored;
- where training also scores steps on the way to one answer (`every`), what the shortest of these steps is a function of
  decides the split: `decided_by`, or a `split_of` of the task's own (mod_chain).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, partial
from hashlib import blake2b
from typing import ClassVar, Literal, NamedTuple, get_args

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

from mull.checkpoints.files import shown
from mull.models.labels import IGNORE
from mull.training.data.streams import Stream

UNKNOWN = "<unk>"  # the token that the tokenizer gives for a symbol outside the vocabulary
START = "<start>"  # the first token of a prompt; a special token, which the tokenizer adds and nobody types
END = "<end>"  # the token after an answer or a document; a special token, which decoding leaves out

Split = Literal["train", "validation", "test"]
Question = tuple[str, Callable[[str], bool]]  # a prompt, and a judge of answers to it
MAX_DIFFICULTY = 100_000  # items of it take seconds; a folder or a slip of the hand may ask for more
MAX_DRAWS = 2048  # an item of a split that owns 1/16 of the items is missed 2048 times with probability 4e-58
MAX_NEW_DRAWS = 32768  # draws of a held-out item that is not among those before it, until there seem to be no more
MAX_HELD_OUT = 1 << 20  # held-out items of one stream, all of which are kept


class Example(NamedTuple):
    """One item as the model sees it."""

    input_ids: np.ndarray  # (T,) int64
    labels: np.ndarray  # (T,) int64: labels[t] is the token to predict AT position t, or IGNORE; shift nothing


class Task(ABC):
    """Base of the tasks. A subclass sets the class variables and `default_difficulty`, and defines the hooks below.

    Every item is a pure function of (task, split, seed, index, difficulty). Splits are disjoint by construction: a hash
    of the item's canonical form, or of that of its beginning, says which split owns it (1/16 test, 1/16 validation, the
    rest train), whatever the seed, and an item is redrawn from its own stream until the split asked for owns it. Items
    of validation and test are redrawn also until they differ from all items before them in their stream.
    """

    name: ClassVar[str]
    purpose: ClassVar[str] = ""  # what a model that was trained on it is for, in a sentence or two, for its card
    difficulty_name: ClassVar[str]  # what a difficulty counts, e.g. "length"
    min_difficulty: ClassVar[int] = 1
    default_difficulty: int  # used if the caller names none
    # Leading symbols of an item that decide its split; None: all of them. A task that scores positions before the last
    # symbol sets it. Then an item is a row of symbols, each read at one position, with one token before the first.
    decided_by: ClassVar[int | None] = None
    # Whether each position is answered where it stands, by a model with `causal: false` that sees all of the item. The
    # prompt is then the whole row, and the answer the row with its scored positions filled in.
    in_place: ClassVar[bool] = False
    # Whether training scores steps on the way to the answer too; a test then scores the answer alone. What the shortest
    # of these steps is a function of must decide the split.
    every: bool = False
    sees_all: bool = False  # what stands behind a position may decide its answer, also where it is not in place
    room: str | None = None  # the option that makes more items where there are too few; None: the difficulty

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

    def finish(self, rng: np.random.Generator, item: np.ndarray, difficulty: int) -> np.ndarray:  # noqa: ARG002
        """What is left to draw of an item once it is known to be of the split asked for; its canonical form stays.

        For what takes long: fifteen of sixteen items that are drawn for a test belong to other splits.
        """
        return item

    def training_items(self, seed: int, indices: Iterable[int], difficulty: int) -> np.ndarray:
        """The training items at `indices`, (B, ...), each a function of its address."""
        stream = self._stream("train", seed, difficulty)
        return np.stack([self._item(stream.at(index), "train", difficulty) for index in indices])

    def prepare(self, seed: int, difficulties: Iterable[int]) -> None:  # noqa: B027 (most tasks have nothing to make)
        """Make what training items of these difficulties are drawn from, where that takes long: before the first of
        them is asked for, and before there are several processes that ask."""

    def options(self) -> tuple[object, ...]:
        """Constructor options that change what an item of given difficulty is; they are part of the stream's key."""
        return ()

    def canonical(self, item: np.ndarray) -> bytes:
        """The bytes that decide an item's split, of the item or of its beginning: equal for equal questions."""
        return item.astype(np.uint8).tobytes()

    def number_of(self, split: Split, difficulty: int) -> int | None:  # noqa: ARG002
        """How many different items a held-out split has, asked where many draws found no new one; None: unknown."""
        return None

    def is_seen(self, difficulty: int, trained: Iterable[int]) -> bool:  # noqa: ARG002
        """Whether held-out items of a difficulty are beginnings of items of the difficulties that were trained on."""
        return False

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
            indices: Which items of the stream. The first n items of validation and of test are n different ones, as
                far as there are so many (`available`); training items are drawn with repeats.
            difficulty: Difficulty of all of them; None means `default_difficulty`.

        Raises ValueError for an unknown split, for a difficulty that the task does not have, and for held-out items
        that are not there.
        """
        difficulty, indices = self.resolve(difficulty), list(indices)
        items = self.items(split, seed, indices, difficulty)
        input_ids, labels = self.lay_out(items, difficulty)
        if self.decided_by is not None and split != "train":
            labels[:, : min(self.decided_by, items.shape[1])] = IGNORE  # the beginning may occur in training
        if self.every and split != "train":
            labels[:, : -self.answer_length(difficulty)] = IGNORE  # the steps may occur in training
        return input_ids, labels

    def columns(
        self, split: Split, seed: int, indices: Iterable[int], difficulty: int | None = None
    ) -> dict[str, np.ndarray]:
        """`batch` by name, and what else training may use of it."""
        input_ids, labels = self.batch(split, seed, indices, difficulty)
        return {"input_ids": input_ids, "labels": labels}

    def items(self, split: Split, seed: int, indices: Sequence[int], difficulty: int) -> np.ndarray:
        """The items at `indices` of a stream, (B, ...). Raises what `batch` does."""
        if split not in get_args(Split):
            raise ValueError(f"unknown split {split!r}: use one of {', '.join(get_args(Split))}")
        if not len(indices) or min(indices) < 0:
            raise ValueError(f"items are counted from 0, and at least one is asked for, not {shown(list(indices))}")
        if split == "train":
            return self.training_items(seed, indices, difficulty)
        held_out = self._held_out(split, seed, difficulty, max(indices) + 1)
        if len(held_out) <= max(indices):
            raise ValueError(
                f"the {self.name} task has {len(held_out)} different {split} items of {self.difficulty_name} "
                f"{difficulty}, so there is no item {max(indices)}: ask for fewer"
            )
        return np.stack([held_out[index] for index in indices])

    def available(self, split: Split, seed: int, wanted: int, difficulty: int | None = None) -> int:
        """How many of `wanted` validation or test items there are, all different; at least 1.

        Raises ValueError if there are none.
        """
        return min(wanted, len(self._held_out(split, seed, self.resolve(difficulty), wanted)))

    def example(self, split: Split, seed: int, index: int, difficulty: int | None = None) -> Example:
        """Item `index` of a stream: the batch of one, without its batch axis."""
        input_ids, labels = self.batch(split, seed, [index], difficulty)
        return Example(input_ids[0], labels[0])

    def prompt(self, split: Split, seed: int, index: int, difficulty: int | None = None) -> tuple[str, str]:
        """Prompt and answer of item `index` as text, without <start> and <end>, as `mull generate` shows them."""
        difficulty = self.resolve(difficulty)
        input_ids, labels = self.example(split, seed, index, difficulty)
        if self.in_place:
            answered = np.where(labels == IGNORE, input_ids, labels)
            return " ".join(self._words(input_ids)), " ".join(self._words(answered))
        start = len(labels) - self.answer_length(difficulty)
        answer = [word for word in self._words(labels[start:]) if word != END]
        question = [word for word in self._words(input_ids[: start + 1]) if word != START]
        return " ".join(question), " ".join(answer)

    def questions(self, split: Split, seed: int, wanted: int, difficulty: int | None = None) -> list[Question]:
        """The prompts of the first held-out items, as many as there are of `wanted`, each with its judge."""
        there = range(self.available(split, seed, wanted, difficulty))
        prompts = [self.prompt(split, seed, index, difficulty)[0] for index in there]
        return [(prompt, partial(self.check, prompt)) for prompt in prompts]

    def resolve(self, difficulty: int | None) -> int:
        """The difficulty itself, or `default_difficulty` for None.

        Raises ValueError for what is no integer, and for one below `min_difficulty` or above MAX_DIFFICULTY; tasks with
        further limits extend this method.
        """
        difficulty = self.default_difficulty if difficulty is None else difficulty
        if isinstance(difficulty, bool) or not isinstance(difficulty, int | np.integer):
            raise ValueError(
                f"{self.difficulty_name} {difficulty!r} is no integer for the {self.name} task: "
                f"use {self.min_difficulty} or more"
            )
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
        return int(difficulty)

    def split_of(self, item: np.ndarray) -> Split:
        """The one split that an item belongs to."""
        deciding = self.canonical(item[: self.decided_by])
        digest = blake2b(deciding, digest_size=1, key=self.name.encode()).digest()
        return {0: "test", 1: "validation"}.get(digest[0] % 16, "train")  # type: ignore[return-value]

    def _stream(self, split: Split, seed: int, difficulty: int) -> Stream:
        return Stream(self.name, *self.options(), split, seed, difficulty)

    def _item(self, rng: np.random.Generator, split: Split, difficulty: int) -> np.ndarray:
        """The first item of a split that a generator draws."""
        for _ in range(MAX_DRAWS):
            item = self.draw(rng, difficulty)
            if self.split_of(item) == split:
                return self.finish(rng, item, difficulty)
        raise self._too_few(split, difficulty, MAX_DRAWS)

    @cached_property
    def _found(self) -> dict[tuple[Split, int, int], tuple[list[np.ndarray], set[bytes]]]:
        """Held-out items found so far, by (split, seed, difficulty), and their canonical forms."""
        return {}

    @cached_property
    def _exhausted(self) -> set[tuple[Split, int, int]]:
        """The addresses where no more items were found: looking takes long, and would be done for every batch."""
        return set()

    def _held_out(self, split: Split, seed: int, difficulty: int, count: int) -> list[np.ndarray]:
        """The first `count` or more items of a held-out stream, all different; fewer if no more are found.

        Item i is a function of its address: the items before it, which it must differ from, are.
        """
        if count > MAX_HELD_OUT:
            raise ValueError(f"{count} held-out items are more than the limit of {MAX_HELD_OUT}: ask for fewer")
        address = (split, seed, difficulty)
        items, known = self._found.setdefault(address, ([], set()))
        stream = self._stream(split, seed, difficulty)
        while len(items) < count and address not in self._exhausted:
            rng = stream.at(len(items))
            item = self._new(rng, split, difficulty, known)
            if item is None:
                self._exhausted.add(address)
                break
            items.append(self.finish(rng, item, difficulty))
            known.add(self.canonical(item))
        if not items:
            none = self.number_of(split, difficulty) == 0  # so that nobody looked further
            raise self._too_few(split, difficulty, MAX_DRAWS if none else MAX_NEW_DRAWS)
        return items

    def _new(self, rng: np.random.Generator, split: Split, difficulty: int, known: set[bytes]) -> np.ndarray | None:
        """The first item of a held-out split that a generator draws and that is not known; None if none is found."""
        for draws in range(MAX_NEW_DRAWS):
            if draws == MAX_DRAWS and len(known) == self.number_of(split, difficulty):
                break  # all that there are have been found
            item = self.draw(rng, difficulty)
            if self.split_of(item) == split and self.canonical(item) not in known:
                return item
        return None

    def _too_few(self, split: Split, difficulty: int, draws: int) -> ValueError:
        return ValueError(
            f"the {self.name} task has too few items of {self.difficulty_name} {difficulty} for disjoint splits "
            f"(none of {draws} draws belongs to {split}): use a larger {self.room or self.difficulty_name}"
        )

    def _words(self, ids: np.ndarray) -> list[str]:
        return [self.symbols[i] for i in ids]
