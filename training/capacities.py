"""Samplers of the capacity: the share c(t) of the tokens that routed pass t of a training batch takes.

    constant   c(t) = c, or a share of its own for each pass
    warm-up    c(t) falls from `start` to c along half a cosine; from 1, all tokens take all passes at first, as in Loop
    uniform    c(t) ~ Uniform(minimum, maximum), drawn for each pass, so that one model serves many capacities

They are pure functions of (seed, index), so that all ranks and resumed runs draw the same shares. Without a sampler
every batch has the capacity of the network's config. `index` counts training batches (optimizer steps times accumulated
batches), not optimizer steps.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from mull.models.selection import check_capacity
from mull.training.data.streams import Stream
from mull.training.iterations import IterationSampler


class CapacitySampler(ABC):
    """Base of the samplers."""

    @abstractmethod
    def __call__(self, seed: int, index: int, n_passes: int) -> tuple[float, ...]:
        """The shares of training batch `index`, each from 0 to 1, one for each of its n_passes routed passes."""

    def check(self, sampler: IterationSampler | None) -> None:  # noqa: B027
        """Raise a ValueError, before anything is trained, where it has no share for a count that a sampler draws."""


class Constant(CapacitySampler):
    """The same shares in every batch.

    Args:
        capacity: one share for all passes, or a list with one for each; 0 to 1.
    """

    def __init__(self, capacity: float | list[float]) -> None:
        check_capacity(capacity, len(capacity) if isinstance(capacity, list) else 1)
        self.capacity = capacity

    def check(self, sampler: IterationSampler | None) -> None:
        if sampler is not None and isinstance(self.capacity, list):
            count = 1 + len(self.capacity)
            if not sampler.minimum == count == sampler.maximum:
                raise ValueError(
                    f"capacity has a share for every routed pass of {count} iterations, and {type(sampler).__name__} "
                    f"may draw others (minimum {sampler.minimum}, maximum {sampler.maximum}): take Fixed with mean "
                    f"{count}, or one share for all passes"
                )

    def __call__(self, seed: int, index: int, n_passes: int) -> tuple[float, ...]:  # noqa: ARG002
        return check_capacity(self.capacity, n_passes)


class WarmUp(CapacitySampler):
    """The share goes from `start` to `capacity` over the first batches, and stays there.

    Args:
        capacity: the final share of all passes, 0 to 1.
        batches: number of training batches over which the share changes.
        start: the share at the first batch, 0 to 1.
    """

    def __init__(self, capacity: float, batches: int, start: float = 1.0) -> None:
        if batches < 1:
            raise ValueError(f"a capacity warm-up needs batches of at least 1, not {batches}")
        check_capacity((capacity, start), 2)
        self.capacity, self.batches, self.start = capacity, batches, start

    def __call__(self, seed: int, index: int, n_passes: int) -> tuple[float, ...]:  # noqa: ARG002
        remaining = (1 + math.cos(math.pi * min(1.0, index / self.batches))) / 2  # falls from 1 to 0
        return (self.capacity + (self.start - self.capacity) * remaining,) * n_passes


class Uniform(CapacitySampler):
    """Every pass of every batch has a share of its own, drawn uniformly.

    Args:
        minimum: smallest share, 0 to 1.
        maximum: largest share, 0 to 1.
    """

    def __init__(self, minimum: float = 0.0, maximum: float = 1.0) -> None:
        check_capacity((minimum, maximum), 2)
        if minimum > maximum:
            raise ValueError(f"capacities need minimum <= maximum, not minimum={minimum}, maximum={maximum}")
        self.minimum, self.maximum = minimum, maximum

    def __call__(self, seed: int, index: int, n_passes: int) -> tuple[float, ...]:
        draws = Stream("capacity", seed).at(index).uniform(self.minimum, self.maximum, n_passes)
        return tuple(draws.tolist())
