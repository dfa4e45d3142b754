"""Tasks and texts as Lightning data modules.

What the trainer needs of a data module, your own included (give its class path in the YAML file):

- `vocab_size: int` and `stop_tokens: tuple[int, ...]`, known right after construction, since the network's config takes
  them;
- `tokenizer: tokenizers.Tokenizer`, which is saved with the weights;
- `bytes_per_token: float | None`, which turns a loss into bits per byte, and is None for data that is not text; it is
  read only after the data has been prepared;
- batches `{"input_ids": (B, T) int64, "labels": (B, T) int64}`, where labels[b, t] is the token to predict at position
  t, or -100 if the position is not scored; labels are aligned with positions and are not shifted later;
- optionally `answers_ahead: bool` and `sees_all: bool`, which say what attention it is for (`check_order`);
- optionally `longest_row() -> int`, the tokens of the longest training row, which the network must have room for;
- optionally `content_key() -> str`, a key of what the training batches are, so that a run does not go on with other
  data than it began with;
- optionally `repeat: int`, how often in a row each training batch comes, for `carry` (carrying.py);
- optionally `answered(number, logits, labels) -> dict[str, float]`, which is told of the answers to every training
  batch, and says what is to be logged of it;
- optionally `about() -> mull.checkpoints.card.About`, for the model card: what a model is for that was trained on it;
- optionally `evaluation_batches(difficulties, examples, batch_size, seed)`, for `mull evaluate` and for the table that
  a finished run leaves behind;
- optionally `questions(difficulties, examples, seed)`, prompts with judges of answers, for `mull evaluate --verify`.

The two modules here promise more: a training batch is a pure function of (seed, batch number, rank), so a resumed run
sees exactly the batches that an uninterrupted one would have seen.
"""

import warnings
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, get_args

import numpy as np
from torch import Tensor

from mull.checkpoints.card import About
from mull.models.loop import check_count
from mull.training.data.batches import Batch, check_workers, next_token_batch, require_positive, to_batch
from mull.training.data.corpora import SOURCES, source_of
from mull.training.data.curriculum import ReachedAccuracy
from mull.training.data.stream_data import Evaluation, StreamData
from mull.training.data.streams import STREAMS, Stream
from mull.training.data.task import Question, Task
from mull.training.data.text import Corpus, TextSplit
from mull.training.data.tokenizer import load_tokenizer, stop_tokens_of

BYTES = 257  # tokens of the tokenizer of bytes, its end token included


class TaskData(StreamData):
    """A synthetic task.

    Args:
        task: The task, with its default difficulty.
        difficulty: Difficulty of all items. From a list every batch draws one difficulty, so that its items have one
            length, and validation takes an equal share of each. None means the task's own.
        curriculum: Difficulties of the first batches: {150: 8, 400: 16} means 8 in batches 0 to 149, 16 in batches 150
            to 399, and `difficulty` from then on.
        advance: In place of a curriculum by numbers: a difficulty of the list enters when the last one is mastered.
        repeat: How often in a row each training batch is given, as segments of one problem for `model.carry`. All of
            them count: batch numbers, and steps, go on with every one.
        batch_size: Items per batch and rank.
        validation_examples: Items of the validation split, always the same; fewer if not so many differ.
        workers: Processes that make the same training batches ahead of time, for a device that would wait for them; 0
            makes them as they are needed. A run may go on with another number.
        seed: Names the streams of items; the splits are the same for every seed.
    """

    def __init__(
        self,
        task: Task,
        difficulty: int | list[int] | None = None,
        curriculum: dict[int, int] | None = None,
        advance: ReachedAccuracy | None = None,
        repeat: int = 1,
        batch_size: int = 64,
        validation_examples: int = 256,
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        mixed = difficulty if isinstance(difficulty, list) else [difficulty]
        if not mixed:
            raise ValueError("difficulty is an empty list: name at least one difficulty")
        require_positive(repeat=repeat, batch_size=batch_size, validation_examples=validation_examples)
        check_workers(workers, advance is not None)
        self.repeat, self.workers, self.validation_examples = repeat, workers, validation_examples
        self.task, self.batch_size, self.seed = task, batch_size, seed
        self.difficulties = [task.resolve(each) for each in mixed]
        for end in curriculum or {}:
            check_count("the batch that a difficulty of the curriculum ends before", end)
        self.curriculum = {end: task.resolve(each) for end, each in sorted((curriculum or {}).items())}
        self.advance, self.ladder = advance, sorted(set(self.difficulties))
        if advance is not None and curriculum:
            raise ValueError(f"advance takes the place of a curriculum, and there is one: leave {curriculum} out")
        if advance is not None and len(self.ladder) == 1:
            raise ValueError(f"advance has nothing to let in: name at least two difficulties, not {difficulty}")
        self.tokenizer, self.stop_tokens = task.tokenizer, task.stop_tokens
        self.difficulty_name, self.in_place = task.difficulty_name, task.in_place
        self.sees_all = task.in_place or task.sees_all
        self.answers_ahead = not task.in_place and task.answer_length(task.default_difficulty) > 1

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self.task.prepare(self.seed, {*self.difficulties, *self.curriculum.values()})
            if self.advance is not None:
                self.advance.begin()  # a saved state is loaded after it

    def longest_row(self) -> int:
        every = {*self.difficulties, *self.curriculum.values()}
        return max(self.task.batch("train", self.seed, [0], each)[0].shape[1] for each in every)

    def training_batch(self, number: int, rank: int = 0, world_size: int = 1) -> Batch:
        difficulty = self.training_difficulty(number)
        start = (number // self.repeat * world_size + rank) * self.batch_size
        return to_batch(**self.task.columns("train", self.seed, range(start, start + self.batch_size), difficulty))

    def training_difficulty(self, number: int) -> int:
        """The difficulty of training batch `number`. It is the same on every rank, since ranks wait for each other."""
        number -= number % self.repeat  # of the first of its repetitions, which they all are
        for end, difficulty in self.curriculum.items():
            if number < end:
                return difficulty
        there = self.difficulties
        if self.advance is not None:
            there = [each for each in there if each in self.ladder[: self.advance.entered(number)]]
        if len(there) == 1:
            return there[0]
        return there[Stream("difficulty", self.seed).at(number).integers(len(there))]

    def answered(self, number: int, logits: Tensor, labels: Tensor) -> dict[str, float]:
        """Take in the answers to training batch `number` of this device; all devices call it together."""
        if self.advance is None:
            return {}
        newest = len(self.advance.entries)
        if newest + 1 < len(self.ladder) and self.training_difficulty(number) == self.ladder[newest]:
            seen = self.advance.count(logits, labels)
            if self.trainer is not None and self.trainer.world_size > 1:
                seen = self.trainer.strategy.reduce(seen, reduce_op="sum")
            self.advance.observe(number, *map(int, seen.tolist()))
        return {"train/hardest": float(self.ladder[self.advance.entered(number - number % self.repeat) - 1])}

    def state_dict(self) -> dict[str, Any]:
        """What a saved state holds of the data: how far the difficulties have come."""
        return {} if self.advance is None else {"advance": self.advance.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.advance is not None:
            self.advance.load_state_dict(state_dict["advance"])

    def evaluation_batches(
        self, difficulties: list[int] | None = None, examples: int = 512, batch_size: int = 64, seed: int = 0
    ) -> Evaluation:
        """The first items of the test split, by difficulty, in batches of (input_ids, labels), each (B, T) int64.

        All differ. Of a difficulty that has fewer than asked for all are given, with a warning that says how many.

        Args:
            difficulties: Which; None means those of training that have unseen items.
            examples: Items for each difficulty.
            batch_size: Items in a batch.
            seed: Names the stream of items, all of which belong to the test split.

        Raises ValueError for a difficulty whose items all are beginnings of training items.
        """
        trained = {*self.difficulties, *self.curriculum.values()}

        def batches(difficulty: int) -> Iterator[tuple[Tensor, Tensor]]:
            count = self.task.available("test", seed, examples, difficulty)
            if count < examples:
                warnings.warn(
                    f"{self.task.name} has {count} different test items of {self.difficulty_name} {difficulty}: "
                    f"measured on these, not on {examples}",
                    stacklevel=2,
                )
            for start in range(0, count, batch_size):
                items = range(start, min(start + batch_size, count))
                batch = to_batch(*self.task.batch("test", seed, items, difficulty))
                yield batch["input_ids"], batch["labels"]

        if difficulties is None:
            chosen = [each for each in self.difficulties if not self.task.is_seen(each, trained)]
        else:
            chosen = [self.task.resolve(each) for each in difficulties]
        for each in chosen or self.difficulties[:1]:
            if self.task.is_seen(each, trained):
                raise ValueError(
                    f"test items of {self.difficulty_name} {each} are beginnings of items of {self.difficulty_name} "
                    f"{max(trained)}, which were trained on, so nothing in them is unseen: use {self.task.decided_by} "
                    "or more"
                )
        return {difficulty: batches(difficulty) for difficulty in chosen}

    def questions(
        self, difficulties: list[int] | None = None, examples: int = 512, seed: int = 0
    ) -> dict[int | None, list[Question]]:
        """The items of `evaluation_batches` as prompts, each with the task's own check of an answer to it."""
        chosen = self.evaluation_batches(difficulties, examples, seed=seed)
        return {each: self.task.questions("test", seed, examples, each) for each in chosen}

    def about(self) -> About:
        """What a model of this task is for, and one of its test items."""
        trained = {*self.difficulties, *self.curriculum.values()}
        difficulty = min((each for each in trained if not self.task.is_seen(each, trained)), default=None)
        prompt, right = None, None
        if difficulty is not None:
            with suppress(ValueError):  # a task of one's own may have no test items, and trains all the same
                prompt, right = self.task.prompt("test", 0, 0, difficulty)
        return About(
            purpose=self.task.purpose or f"Answers items of the task {self.task.name}.",
            data=f"random items of the task {self.task.name}, made by mull: nothing to license",
            prompt=prompt,
            right=right,
        )

    def validation_batches(self) -> list[Batch]:
        different = dict.fromkeys(self.difficulties)  # one that is named twice is trained on twice as often
        share = -(-self.validation_examples // len(different))  # rounded up
        found = {each: self.task.available("validation", self.seed, share, each) for each in different}
        return [
            to_batch(**self.task.columns("validation", self.seed, range(count)[i : i + self.batch_size], difficulty))
            for difficulty, count in found.items()
            for i in range(0, count, self.batch_size)
        ]


class TextData(StreamData):
    """Next-token prediction on your own text, packed into windows without padding.

    Args:
        paths: Files (.txt, .jsonl) or folders of those; ~ stands for the home folder.
        fields: For .jsonl files: the fields of a record whose texts, joined by line ends, are its document.
        tokenizer: Path of a tokenizer.json; None means bytes.
        length: Positions per window.
        batch_size: Windows per batch and rank.
        validation_windows: Largest number of windows of the held-out split, the same ones at every validation.
        held_out: Share of the documents, chosen by a hash of their content, that is kept for validation; in (0, 1].
        cache: Folder of the tokenized corpus, which is built when it is first needed, and again when files or settings
            have changed.
        seed: Names the stream of training windows; the split is the same for every seed.
    """

    answers_ahead = True

    def __init__(
        self,
        paths: list[str],
        fields: list[str] | None = None,
        tokenizer: str | None = None,
        length: int = 256,
        batch_size: int = 32,
        validation_windows: int = 64,
        held_out: float = 0.05,
        cache: str = ".cache/mull",
        seed: int = 0,
    ) -> None:
        super().__init__()
        require_positive(length=length, batch_size=batch_size, validation_windows=validation_windows)
        self.length, self.batch_size, self.validation_windows, self.seed = length, batch_size, validation_windows, seed
        self.tokenizer = load_tokenizer(tokenizer)
        self.stop_tokens = stop_tokens_of(self.tokenizer)
        self.paths = paths
        self._build = partial(Corpus.build, paths, fields, self.tokenizer, held_out, cache)
        self._corpus: Corpus | None = None

    def prepare_data(self) -> None:
        """Tokenize the text, unless it is in the cache. The trainer calls this on one rank while the others wait.

        Raises ValueError if a split is too short for one window, and what `Corpus.build` raises.
        """
        corpus = self._build()
        for split in get_args(TextSplit):
            corpus.require_window(split, self.length)

    @property
    def corpus(self) -> Corpus:
        """The packed tokens, which are built or opened on first use."""
        if self._corpus is None:
            self._corpus = self._build()
            self._corpus.require_window("validation", self.length)
        return self._corpus

    @property
    def bytes_per_token(self) -> float:  # type: ignore[override]
        """Bytes of text for each token of the held-out split, end tokens included."""
        return self.corpus.bytes("validation") / self.corpus.tokens("validation")

    def about(self) -> About:
        """What a model of these texts is for, told by their names alone; none of them is read."""
        found = {path: source_of(path) for path in self.paths}
        public = [source for source in SOURCES.values() if source in found.values()]
        own = ", ".join(Path(path).name for path, source in found.items() if source is None)
        manner = " and ".join([source.manner for source in public] + ([own] if own else []))
        unit = "byte by byte" if self.vocab_size <= BYTES else "token by token"
        return About(
            purpose=f"Writes on in the manner of {manner}, {unit}: a small model for seeing how the loss falls with "
            "iterations, and no assistant.",
            data="; ".join(
                [source.licence for source in public] + ([f"{own}: licence unknown to mull"] if own else [])
            ),
            prompt=public[0].prompt if public else None,
            measured_on="--paths your.txt",
        )

    def content_key(self) -> str:
        """A key of all tokens of both splits and of their tokenizer, wherever the files of text lie."""
        digest = sha256(repr((STREAMS, self.tokenizer.to_str())).encode())
        digest.update(self.corpus.content_key().encode())
        return digest.hexdigest()

    def longest_row(self) -> int:
        return self.length

    def training_batch(self, number: int, rank: int = 0, world_size: int = 1) -> Batch:
        start = (number * world_size + rank) * self.batch_size
        return next_token_batch(
            self.corpus.random_windows("train", self.seed, range(start, start + self.batch_size), self.length)
        )

    def validation_batches(self) -> list[Batch]:
        return list(self.held_out_batches(self.validation_windows, self.batch_size))

    def evaluation_batches(
        self, difficulties: list[int] | None = None, examples: int = 512, batch_size: int = 32, seed: int | None = None
    ) -> Evaluation:
        """The held-out split in batches of (input_ids, labels), each (B, T) int64, under the one difficulty None.

        Args:
            difficulties: Must be None, since text has no difficulty.
            examples: Largest number of windows; where there are fewer, all are given, and a warning says how many.
            batch_size: Windows in a batch.
            seed: Must be None, since the windows are spread evenly and not drawn.
        """
        if difficulties is not None:
            raise ValueError(f"text has no difficulty: leave {difficulties} out")
        if seed is not None:
            raise ValueError(f"windows of text are spread evenly and not drawn: leave the seed {seed} out")

        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            there = self.corpus.windows("validation", self.length)
            if there < examples:
                warnings.warn(
                    f"the held-out text has {there} windows of {self.length}: measured on these, not on {examples}",
                    stacklevel=2,
                )
            for batch in self.held_out_batches(examples, batch_size):
                yield batch["input_ids"], batch["labels"]

        return {None: batches()}

    def held_out_batches(self, windows: int, batch_size: int) -> Iterator[Batch]:
        """At most `windows` windows, spread evenly over the held-out split, so that every file has its share."""
        there = self.corpus.windows("validation", self.length)
        count = min(windows, there)
        for start in range(0, count, batch_size):
            chosen = [i * there // count for i in range(start, min(start + batch_size, count))]
            yield next_token_batch(np.stack([self.corpus.window("validation", i, self.length) for i in chosen]))
