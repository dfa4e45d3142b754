"""Batches: what one is, and an endless row of them."""

from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

# input_ids and labels, each (B, T) int64; with traces also values (B, T) float32: whether the answer can still be
# reached, 1 or 0, where a step ends, and -1 elsewhere
Batch: TypeAlias = dict[str, Tensor]


class EndlessBatches(IterableDataset[Batch]):
    """Batches number `first()`, `first()` + 1, ... without end; `first` is called whenever an epoch begins.

    Several worker processes take turns, worker w of W the batches w, w + W, ..., and their loader asks them in turn: so
    batches come in the same order whatever W is.
    """

    def __init__(self, make: Callable[[int], Batch], first: Callable[[], int]) -> None:
        self.make, self.first = make, first

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        number = self.first() + (0 if worker is None else worker.id)
        while True:
            yield self.make(number)
            number += 1 if worker is None else worker.num_workers


def to_batch(input_ids: np.ndarray, labels: np.ndarray) -> Batch:
    """A batch from two integer arrays (B, T)."""
    return {"input_ids": torch.from_numpy(input_ids), "labels": torch.from_numpy(labels)}


def next_token_batch(windows: np.ndarray) -> Batch:
    """A batch from windows (B, T + 1): position t reads token t and predicts token t + 1."""
    return to_batch(windows[:, :-1].copy(), windows[:, 1:].copy())


def require_positive(**values: int) -> None:
    """Raises ValueError that names the first value below 1."""
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name} is {value}: it must be 1 or more")
