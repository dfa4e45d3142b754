"""Batches: what one is, and an endless row of them."""

import multiprocessing
from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

# input_ids and labels, each (B, T) int64; with traces also values (B, T) float32: whether the answer can still be
# reached, 1 or 0, where a step ends, and -1 elsewhere
Batch: TypeAlias = dict[str, Tensor]

MAX_SIZE = 2**31 - 1  # rows of a batch, tokens of a row, held-out examples: 32 bits
MAX_WORKERS = 256  # each is a process with memory of its own: a slip of the finger must not take all there is


class EndlessBatches(IterableDataset[Batch]):
    """Batches number `first()`, `first()` + 1, ... without end; `first` is called whenever an epoch begins.

    Of W worker processes each makes every W-th, and the loader takes them in turn: the row is the same.
    """

    def __init__(self, make: Callable[[int], Batch], first: Callable[[], int]) -> None:
        self.make, self.first = make, first

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        number, step = self.first() + (worker.id if worker else 0), worker.num_workers if worker else 1
        while True:
            yield self.make(number)
            number += step


def loader_of(make: Callable[[int], Batch], first: Callable[[], int], workers: int) -> DataLoader[Batch]:
    """`EndlessBatches`, made as they are asked for, or ahead of time by worker processes, copies of this one."""
    batches = EndlessBatches(make, first)
    if not workers:
        return DataLoader(batches, batch_size=None)
    return DataLoader(batches, batch_size=None, num_workers=workers, multiprocessing_context="fork")


def check_workers(workers: int, advances: bool) -> None:
    """Raises ValueError for a number of worker processes that there cannot be; `advances` where batches depend on the
    answers to those before them."""
    if workers < 0:
        raise ValueError(f"workers is {workers}: it must be 0, for none, or more")
    if workers > MAX_WORKERS:
        raise ValueError(f"workers is {workers}, above the limit of {MAX_WORKERS} processes: give fewer")
    if workers and advances:
        raise ValueError(f"workers is {workers}, and none of them would know what advance has let in: leave it out")
    if workers and "fork" not in multiprocessing.get_all_start_methods():
        raise ValueError(f"workers is {workers}, and this system makes no copies of a process: leave it out")


def to_batch(input_ids: np.ndarray, labels: np.ndarray, **more: np.ndarray) -> Batch:
    """A batch from two integer arrays (B, T), and more by name."""
    columns = {"input_ids": input_ids, "labels": labels, **more}
    return {name: torch.from_numpy(column) for name, column in columns.items()}


def next_token_batch(windows: np.ndarray) -> Batch:
    """A batch from windows (B, T + 1): position t reads token t and predicts token t + 1."""
    return to_batch(windows[:, :-1].copy(), windows[:, 1:].copy())


def require_positive(**values: int) -> None:
    """Raises ValueError that names the first value below 1, or too large for any batch."""
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name} is {value}: it must be 1 or more")
        if value > MAX_SIZE:
            raise ValueError(f"{name} is {value}, above the limit of {MAX_SIZE:,}: give less")
