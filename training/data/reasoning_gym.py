"""Any generator of the package reasoning_gym as training data, and its own verifier for what a model writes.

The package (Stojanovski et al., arXiv 2505.24760; `pip install mull[gym]`) has a hundred generators of questions in
words with answers that a program checks: arithmetic, logic, puzzles, graphs, code. An item here is

    question, line end, answer, <end>            bytes by default; the answer and <end> are scored

Item i of a generator is drawn with the seed s + i, so that items of neighbouring seeds are the same; here an address
(split, seed, index) names a place among 2^31 items (FEWER of some) by a stream of its own (streams.py). A hash of the
question decides its split, and items of validation and of test are different from each other, as in every task of mull
(task.py).
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from mull.checkpoints.card import About
from mull.training.data.batches import Batch, require_positive, to_batch
from mull.training.data.module import Evaluation, StreamData
from mull.training.data.streams import Stream
from mull.training.data.task import IGNORE, MAX_DRAWS, Question, Split
from mull.training.data.tokenizer import load_tokenizer, stop_tokens_of

PLACES = 2**31 - 1  # items of a generator
FEWER = {  # of those that make something of each place at the start, or refuse more
    "acre": 2_000, "gsm_symbolic": 2**20, "list_functions": 2**20, "word_ladder": 20_000
}  # fmt: skip
TRIED = 8  # entries, of which one must have an answer in words
BEHIND = "\n"  # stands between question and answer
MAX_NEW_DRAWS = 4096  # draws of a held-out item that is not among those before it, until there seem to be no more


class Item(NamedTuple):
    """A question, its answer, and the entry of the generator, which its verifier wants back."""

    question: str
    answer: str
    entry: dict[str, Any]


class ReasoningGym(StreamData):
    """Questions of one generator. Rows of a batch are filled up with <end> behind the longest, unscored.

    Args:
        generator: Its name, as chain_sum; `reasoning_gym.factory.DATASETS` has them all.
        options: Fields of its configuration, the same at every difficulty: {max_digits: 2}.
        levels: Options by difficulty, laid over `options`: {2: {min_terms: 2, max_terms: 2}}; training mixes them, a
            difficulty for each batch. None: there is no difficulty.
        tokenizer: Path of a tokenizer.json; None means bytes.
        length: Most tokens of a question and its answer; longer items are passed over.
        batch_size: Items per batch and rank.
        validation_examples: Items of the validation split for each difficulty: fewer if there are not so many.
        seed: Names the streams of items; the splits are the same for every seed.

    Raises:
        ValueError: the package is missing, it has no such generator, or one that gives no answers, or a generator
            refuses its options.
    """

    answers_ahead = True

    def __init__(
        self,
        generator: str,
        options: dict[str, Any] | None = None,
        levels: dict[int, dict[str, Any]] | None = None,
        tokenizer: str | None = None,
        length: int = 256,
        batch_size: int = 32,
        validation_examples: int = 128,
        seed: int = 0,
    ) -> None:
        super().__init__()
        require_positive(length=length, batch_size=batch_size, validation_examples=validation_examples)
        if levels is not None and not levels:
            raise ValueError("levels is empty: name at least one difficulty, or leave it out")
        self.generator, self.options, self.length = generator, dict(options or {}), length
        self.levels: dict[int | None, dict[str, Any]] = dict(levels) if levels else {None: {}}  # type: ignore[arg-type]
        self.batch_size, self.validation_examples, self.seed = batch_size, validation_examples, seed
        self.tokenizer = load_tokenizer(tokenizer)
        self.stop_tokens = stop_tokens_of(self.tokenizer)
        self.datasets = {level: dataset(generator, {**self.options, **own}) for level, own in self.levels.items()}

    @property
    def difficulties(self) -> list[int | None]:
        """The difficulties of training; [None] where there is no such thing."""
        return list(self.levels)

    # Items ------------------------------------------------------------------------------------------------------------

    def items(self, split: Split, seed: int, indices: Sequence[int], level: int | None) -> list[Item]:
        """Items by address; training items are drawn with repeats, held-out ones are different from each other.

        Raises:
            ValueError: no drawn item of the split is short enough, or there are not so many different ones.
        """
        stream = Stream("reasoning_gym", self.generator, repr(sorted(self.options.items())),
                        repr(sorted(self.levels[level].items())), split, seed)  # fmt: skip
        if split == "train":
            return [self._draw(stream.at(i), split, level, set()) or self._none(split, level) for i in indices]
        address = (split, seed, level)
        kept, known = self._found.setdefault(address, ([], set()))
        while len(kept) <= max(indices) and address not in self._exhausted:
            item = self._draw(stream.at(len(kept)), split, level, known)
            if item is None:
                self._exhausted.add(address)
                break
            kept.append(item)
            known.add(item.question)
        if not kept:
            self._none(split, level)
        if len(kept) <= max(indices):
            raise ValueError(f"{self.generator} has {len(kept)} different {split} items found: ask for fewer")
        return [kept[i] for i in indices]

    def available(self, split: Split, seed: int, wanted: int, level: int | None) -> int:
        """How many of `wanted` held-out items there are, all different; at least 1."""
        try:
            self.items(split, seed, [wanted - 1], level)
        except ValueError:
            if not self._found[split, seed, level][0]:
                raise
        return min(wanted, len(self._found[split, seed, level][0]))

    @cached_property
    def _found(self) -> dict[tuple[Split, int, int | None], tuple[list[Item], set[str]]]:
        """Held-out items found so far, and their questions."""
        return {}

    @cached_property
    def _exhausted(self) -> set[tuple[Split, int, int | None]]:
        """The addresses where no more were found, so that nobody looks again."""
        return set()

    def _draw(self, rng: np.random.Generator, split: Split, level: int | None, known: set[str]) -> Item | None:
        for _ in range(MAX_NEW_DRAWS if known else MAX_DRAWS):
            entry = self.datasets[level][int(rng.integers(len(self.datasets[level])))]
            question, answer = entry["question"], entry["answer"]
            if not isinstance(answer, str) or not answer or question in known or split_of(question) != split:
                continue
            if len(self.ids(question + BEHIND)) + len(self.ids(answer)) <= self.length:
                return Item(question, answer, entry)
        return None

    def _none(self, split: Split, level: int | None) -> Item:
        where = "" if level is None else f" at difficulty {level}"
        raise ValueError(
            f"{self.generator}{where} has no {split} item of at most {self.length} tokens among {MAX_DRAWS} draws: "
            "raise length, or choose options that make shorter questions"
        )

    def ids(self, text: str) -> list[int]:
        """The token ids of a text, as a prompt has them."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def lay_out(self, items: Sequence[Item]) -> Batch:
        """A batch: position t reads a token and predicts the next; only the answer and <end> are scored."""
        end = self.stop_tokens[0]
        rows = [(self.ids(item.question + BEHIND), [*self.ids(item.answer), end]) for item in items]
        longest = max(len(question) + len(answer) for question, answer in rows) - 1
        input_ids = np.full((len(rows), longest), end, dtype=np.int64)
        labels = np.full((len(rows), longest), IGNORE, dtype=np.int64)
        for row, (question, answer) in enumerate(rows):
            whole = [*question, *answer][:-1]
            input_ids[row, : len(whole)] = whole
            labels[row, len(question) - 1 : len(whole)] = answer
        return to_batch(input_ids, labels)

    # What the trainer and the command line ask for --------------------------------------------------------------------

    def longest_row(self) -> int:
        return self.length  # longer items are passed over

    def training_batch(self, number: int, rank: int = 0, world_size: int = 1) -> Batch:
        levels = self.difficulties
        level = levels[int(Stream("difficulty", self.seed).at(number).integers(len(levels)))]
        start = (number * world_size + rank) * self.batch_size
        return self.lay_out(self.items("train", self.seed, range(start, start + self.batch_size), level))

    def validation_batches(self) -> list[Batch]:
        return [batch for level in self.levels for batch in self._batches("validation", self.seed, level,
                self.validation_examples, self.batch_size)]  # fmt: skip

    def _batches(self, split: Split, seed: int, level: int | None, wanted: int, size: int) -> Iterator[Batch]:
        count = self.available(split, seed, wanted, level)
        for start in range(0, count, size):
            yield self.lay_out(self.items(split, seed, range(start, min(start + size, count)), level))

    def chosen(self, difficulties: list[int] | None) -> list[int | None]:
        """The difficulties asked for, or all. Raises ValueError for one that has no level."""
        unknown = [each for each in difficulties or [] if each not in self.levels]
        if unknown:
            there = ", ".join(map(str, self.levels)) if None not in self.levels else "none: leave it out"
            raise ValueError(f"{self.generator} has no difficulty {unknown[0]} here; there are {there}")
        return self.difficulties if difficulties is None else list(difficulties)

    def evaluation_batches(
        self, difficulties: list[int] | None = None, examples: int = 512, batch_size: int = 64, seed: int = 0
    ) -> Evaluation:
        """The first items of the test split by difficulty, in batches of (input_ids, labels), each (B, T) int64, all
        different; fewer where there are not so many. Raises ValueError for a difficulty that has no level."""

        def batches(level: int | None) -> Iterator[tuple[Tensor, Tensor]]:
            for batch in self._batches("test", seed, level, examples, batch_size):
                yield batch["input_ids"], batch["labels"]

        return {level: batches(level) for level in self.chosen(difficulties)}

    def questions(
        self, difficulties: list[int] | None = None, examples: int = 512, seed: int = 0
    ) -> dict[int | None, list[Question]]:
        """The same items as prompts, each with the generator's own verifier: whether it gives an answer full marks."""

        def judge(level: int | None, item: Item) -> Callable[[str], bool]:
            return lambda answer: self.datasets[level].score_answer(answer=answer.strip(), entry=item.entry) >= 1

        found = {}
        for level in self.chosen(difficulties):
            items = self.items("test", seed, range(self.available("test", seed, examples, level)), level)
            found[level] = [(item.question + BEHIND, judge(level, item)) for item in items]
        return found

    def about(self) -> About:
        (item,) = self.items("test", 0, [0], self.difficulties[0])
        return About(
            purpose=f"Answers questions of the generator {self.generator} of reasoning_gym.",
            data=f"random items of reasoning_gym's {self.generator} (Apache-2.0)",
            prompt=item.question + BEHIND,
            right=item.answer,
        )


def split_of(question: str) -> Split:
    """The one split that a question belongs to."""
    digest = blake2b(question.encode(), digest_size=1, key=b"reasoning_gym").digest()
    return {0: "test", 1: "validation"}.get(digest[0] % 16, "train")  # type: ignore[return-value]


def dataset(generator: str, options: dict[str, Any]) -> Any:
    """A generator of the package with these options. Raises ValueError that names what is wrong."""
    try:
        from reasoning_gym.factory import DATASETS, create_dataset
    except ImportError as error:
        raise ValueError("this needs the package reasoning_gym: pip install 'mull[gym]'") from error
    if generator not in DATASETS:
        from difflib import get_close_matches

        near = get_close_matches(generator, DATASETS, 3)
        meant = f"; near are {', '.join(near)}" if near else f"; it has {len(DATASETS)}, such as chain_sum"
        raise ValueError(f"reasoning_gym has no generator {generator!r}{meant}")
    taken = [name for name in ("seed", "size") if name in options]
    if taken:
        raise ValueError(f"{taken[0]} of {generator} is set by mull: leave it out of options")
    try:
        found = create_dataset(generator, **options, seed=0, size=FEWER.get(generator, PLACES))
        told = any(isinstance(found[place]["answer"], str) for place in range(TRIED))  # some check no sooner than here
    except (TypeError, ValueError, AssertionError, LookupError, ArithmeticError) as error:
        why = str(error) or type(error).__name__
        raise ValueError(f"reasoning_gym's {generator} refuses the options {options}: {why}") from error
    if not told:
        raise ValueError(f"{generator} gives no answer in words, which is what is trained on and scored: take another")
    return found
