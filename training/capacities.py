"""Which share of the tokens the routed passes of a training batch take: pure functions of (seed, index), so ranks and
resumed runs agree.

    constant   c, or one share for each pass
    warm-up    c(index) falls from `start` to c along half a cosine: at first everybody thinks, as in Loop
    uniform    c_t ~ Uniform(minimum, maximum), one draw for each pass: one model for many capacities

Without a sampler every batch has the capacity of the network's config. `index` counts training batches (optimizer steps
times accumulated batches), not optimizer steps.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from mull.models.selection import check_capacity
from mull.training.data.streams import Stream


class CapacitySampler(ABC):
    """Base of the samplers."""

    @abstractmethod
    def __call__(self, seed: int, index: int, n_passes: int) -> tuple[float, ...]:
        """One share for each of the n_passes routed passes of batch `index`."""


class Constant(CapacitySampler):
    """The same in every batch.

    Args:
        capacity: one share for all passes, or one for each.
    """

    def __init__(self, capacity: float | list[float]) -> None:
        check_capacity(capacity, len(capacity) if isinstance(capacity, list) else 1)
        self.capacity = capacity

    def __call__(self, seed: int, index: int, n_passes: int) -> tuple[float, ...]:  # noqa: ARG002
        return check_capacity(self.capacity, n_passes)


class WarmUp(CapacitySampler):
    """From `start` to `capacity` over the first batches.

    Args:
        capacity: share of all passes from then on.
        batches: number of batches over which the share changes.
        start: the first share.
    """

    def __init__(self, capacity: float, batches: int, start: float = 1.0) -> None:
        if batches < 1:
            raise ValueError(f"a capacity warm-up needs batches of at least 1, not {batches}")
        check_capacity((capacity, start), 2)
        self.capacity, self.batches, self.start = capacity, batches, start

    def __call__(self, seed: int, index: int, n_passes: int) -> tuple[float, ...]:  # noqa: ARG002
        left = (1 + math.cos(math.pi * min(1.0, index / self.batches))) / 2
        return (self.capacity + (self.start - self.capacity) * left,) * n_passes


class Uniform(CapacitySampler):
    """A draw for each pass of each batch.

    Args:
        minimum, maximum: limits of the shares.
    """

    def __init__(self, minimum: float = 0.0, maximum: float = 1.0) -> None:
        check_capacity((minimum, maximum), 2)
        if minimum > maximum:
            raise ValueError(f"capacities need minimum <= maximum, not minimum={minimum}, maximum={maximum}")
        self.minimum, self.maximum = minimum, maximum

    def __call__(self, seed: int, index: int, n_passes: int) -> tuple[float, ...]:
        draws = Stream("capacity", seed).at(index).uniform(self.minimum, self.maximum, n_passes)
        return tuple(draws.tolist())
