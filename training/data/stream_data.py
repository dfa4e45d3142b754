"""StreamData: what the data modules of mull share. Batches are functions of their number, and never end."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import TypeAlias

import lightning.pytorch as pl
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import DataLoader

from mull.training.data.batches import Batch, loader_of
from mull.training.data.streams import STREAMS
from mull.training.data.tokenizer import vocab_size_of

Evaluation: TypeAlias = Mapping[int | None, Iterable[tuple[Tensor, Tensor]]]  # difficulty -> (input_ids, labels)


class StreamData(pl.LightningDataModule, ABC):
    """Base of data modules whose batches are functions of their number. The data never ends, so set `max_steps`."""

    tokenizer: Tokenizer
    stop_tokens: tuple[int, ...]
    bytes_per_token: float | None = None
    difficulty_name: str = "difficulty"  # what a difficulty counts, for legends
    answers_ahead: bool = False  # what one position is to predict is read at a later one
    in_place: bool = False  # each position is answered where it stands, and nothing is written behind the row
    sees_all: bool = False  # what stands behind a position may decide its answer
    scores_tokens: bool = True  # training batches have labels; without them there is nothing but judgements of steps
    policy_judges: bool = False  # a model writes texts, for judgements of steps and nothing else
    repeat: int = 1  # how often in a row each training batch comes
    workers: int = 0  # processes that make training batches ahead of time

    @property
    def vocab_size(self) -> int:
        """The number of token ids, special tokens included."""
        return vocab_size_of(self.tokenizer)

    @abstractmethod
    def training_batch(self, number: int, rank: int = 0, world_size: int = 1) -> Batch:
        """Training batch `number` >= 0 of one of `world_size` ranks; different ranks have different items."""

    def longest_row(self) -> int:
        """The longest training row in tokens, as far as it is known ahead; 0 where it is not."""
        return 0

    def content_key(self) -> str:
        """A key of the training batches of this version of the code: SHA-256 of the first two."""
        digest = sha256(repr((STREAMS, type(self).__name__)).encode())
        for number in range(2):
            for name, values in self.training_batch(number).items():
                digest.update(repr((name, tuple(values.shape))).encode() + values.contiguous().numpy().tobytes())
        return digest.hexdigest()

    @abstractmethod
    def validation_batches(self) -> list[Batch]:
        """The fixed batches of the held-out split."""

    def train_dataloader(self) -> DataLoader[Batch]:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        few = getattr(self.trainer, "overfit_batches", 0)  # an integer above 0: these first ones, over and over; where
        # several make a step, and do not divide them, each round begins at another of them

        def make(number: int) -> Batch:
            return self.training_batch(number % few if few and isinstance(few, int) else number, rank, world_size)

        return loader_of(make, self._batches_done, self.workers)

    def val_dataloader(self) -> DataLoader[Batch]:
        # A list of whole batches: with several ranks the trainer deals them out.
        return DataLoader(self.validation_batches(), batch_size=None)  # type: ignore[arg-type]

    def _batches_done(self) -> int:
        """The number of batches that each rank has used before the present optimizer step, resumed or not."""
        return self.trainer.global_step * self.trainer.accumulate_grad_batches if self.trainer else 0
