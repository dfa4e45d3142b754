"""Samplers of the iteration count R of each training batch.

They are pure functions of (seed, index), so that all ranks and resumed runs draw the same counts.

    fixed              R = mean
    log-normal Poisson tau ~ Normal(ln(mean) - sigma^2 / 2, sigma);  R ~ Poisson(exp(tau)) + 1     (Huginn, 2502.05171)
    Poisson            R_b ~ max(1, Poisson(mean)), one count per sequence                         (Parcae, 2604.12946)
    uniform            R ~ Uniform{minimum .. maximum}, one count for the batch or one per sequence
    linear curriculum  log-normal Poisson whose mean climbs from `start` to `mean`                 (2511.07384)
    progressive        n ~ Uniform{0 .. m-1} iterations without gradient, then k ~ Uniform{1 .. m-n} with it, for a
                       share of the batches; the others take m, all with gradient                  (Bansal, 2202.05826)

A sampler may draw the gradient window too (`window`); elsewhere it is the module's. Every sampler clips its draws to
minimum .. maximum. `index` counts training batches (optimizer steps times accumulated batches), not optimizer steps.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
import torch

from mull.models.config import MAX_CONFIGURED
from mull.models.loop import Iterations, check_count
from mull.training.data.streams import Stream

MAX_SIGMA = 5  # above it a mean of ten iterations is one of many draws of 1 and a few of millions


class IterationSampler(ABC):
    """Base of the samplers.

    Args:
        mean: mean iteration count, at least 1; the log-normal Poisson draws add 1 to it.
        minimum: smaller draws become this count.
        maximum: larger draws become this count; None means no limit.

    Raises:
        ValueError: the mean is below 1 or above 10,000, or not 1 <= minimum <= maximum.
    """

    draws_window: ClassVar[bool] = False  # whether `window` says how far the gradient goes back, batch by batch

    def __init__(self, mean: float, minimum: int = 1, maximum: int | None = None) -> None:
        if not 1 <= mean <= MAX_CONFIGURED:
            raise ValueError(f"mean iterations must lie between 1 and {MAX_CONFIGURED:,}, not {mean}")
        if not 1 <= minimum <= MAX_CONFIGURED or (maximum is not None and maximum < minimum):
            raise ValueError(
                f"iterations need 1 <= minimum <= maximum, and a minimum of at most {MAX_CONFIGURED:,}, "
                f"not minimum={minimum}, maximum={maximum}"
            )
        self.mean, self.minimum, self.maximum = mean, minimum, maximum

    def __call__(self, seed: int, index: int, batch_size: int) -> Iterations:
        """The count of training batch `index`: an integer, or a tensor (batch_size,) int64 of a count per sequence."""
        drawn = np.clip(self.draw(self.stream(seed, index), index, batch_size), self.minimum, self.maximum)
        return int(drawn) if drawn.ndim == 0 else torch.from_numpy(drawn.astype(np.int64))

    def stream(self, seed: int, index: int) -> np.random.Generator:
        """The random numbers of training batch `index`, from the first."""
        return Stream("iterations", seed).at(index)

    def window(self, seed: int, index: int) -> int | None:
        """The iterations, counted from the last, that the gradient of training batch `index` passes through; None
        leaves them to the module."""
        return None

    @abstractmethod
    def draw(self, rng: np.random.Generator, index: int, batch_size: int) -> np.ndarray:
        """The draw before it is clipped: an array without axes, or one of shape (batch_size,), of whole numbers."""


def check_most(maximum: int) -> None:
    """Raise a ValueError for more iterations than anybody trains."""
    if maximum > MAX_CONFIGURED:
        raise ValueError(f"maximum must be at most {MAX_CONFIGURED:,}, not {maximum}")


class Fixed(IterationSampler):
    """The same count in every batch.

    Args:
        mean: that count.
    """

    def __init__(self, mean: int) -> None:
        super().__init__(mean, mean, mean)

    def draw(self, rng: np.random.Generator, index: int, batch_size: int) -> np.ndarray:
        return np.asarray(self.mean)


class Uniform(IterationSampler):
    """Every count from minimum to maximum alike, whatever the length of the rows: a model cannot learn to take the
    length for the depth, which is what makes depth carry to longer rows (arXiv 2606.29983).

    Args:
        minimum: the least iterations.
        maximum: the most iterations.
        per_sequence: a count of its own for every sequence of the batch, instead of one for all.
    """

    def __init__(self, minimum: int, maximum: int, per_sequence: bool = False) -> None:
        check_most(maximum)
        super().__init__((minimum + maximum) / 2, minimum, maximum)
        self.per_sequence = per_sequence

    def draw(self, rng: np.random.Generator, index: int, batch_size: int) -> np.ndarray:
        assert self.maximum is not None
        return np.asarray(rng.integers(self.minimum, self.maximum + 1, batch_size if self.per_sequence else None))


class LogNormalPoisson(IterationSampler):
    """The heavy-tailed draw of Huginn (arXiv 2502.05171), one count for the whole batch.

    Args:
        mean: mean of the Poisson part, to which 1 is added.
        sigma: standard deviation of tau; 0 leaves a plain Poisson draw + 1.
        minimum: smaller draws become this; see `IterationSampler`.
        maximum: larger draws become this; None for no limit.
    """

    def __init__(self, mean: float, sigma: float = 0.5, minimum: int = 1, maximum: int | None = None) -> None:
        super().__init__(mean, minimum, maximum)
        if not 0 <= sigma <= MAX_SIGMA:
            raise ValueError(f"sigma must lie between 0 and {MAX_SIGMA}, not {sigma}")
        self.sigma = sigma

    def draw(self, rng: np.random.Generator, index: int, batch_size: int) -> np.ndarray:
        tau = rng.normal(math.log(self.mean_at(index)) - self.sigma**2 / 2, self.sigma)
        return np.asarray(rng.poisson(math.exp(tau)) + 1)

    def mean_at(self, index: int) -> float:
        """The mean at training batch `index`."""
        return self.mean


class LinearCurriculum(LogNormalPoisson):
    """A log-normal Poisson draw whose mean climbs linearly, so that the first batches are shallow and cheap.

    Args:
        mean: the final mean.
        batches: number of training batches over which the mean climbs.
        start: the mean at the first batch, at least 1.
        sigma: see `LogNormalPoisson`.
        minimum: see `LogNormalPoisson`.
        maximum: see `LogNormalPoisson`.
    """

    def __init__(
        self,
        mean: float,
        batches: int,
        start: float = 1.0,
        sigma: float = 0.5,
        minimum: int = 1,
        maximum: int | None = None,
    ) -> None:
        super().__init__(mean, sigma, minimum, maximum)
        if batches < 1 or not 1 <= start <= MAX_CONFIGURED:
            raise ValueError(
                f"a curriculum needs batches >= 1 and a start between 1 and {MAX_CONFIGURED:,}, "
                f"not batches={batches}, start={start}"
            )
        self.batches, self.start = batches, start

    def mean_at(self, index: int) -> float:
        return self.start + (self.mean - self.start) * min(1.0, index / self.batches)


class Progressive(IterationSampler):
    """Starts to learn from wherever a loop may stand: n iterations without gradient, then k more with it, so that the
    answer must become better from any state on the way and not only from the first (the progressive loss of Bansal et
    al., arXiv 2202.05826). Where that paper adds two losses with weights 1 - alpha and alpha, a batch takes one of them
    with these chances: the same in expectation, for half of the cost.

    Args:
        maximum: m, the most iterations; n is uniform over 0 .. m-1, and k over 1 .. m-n.
        share: alpha, the share of the batches that are drawn so; the others take m iterations, all with gradient.
    """

    draws_window = True

    def __init__(self, maximum: int, share: float = 0.5) -> None:
        check_most(check_count("maximum", maximum))
        if not 0 <= share <= 1:
            raise ValueError(f"share must lie between 0 and 1, not {share}")
        super().__init__(share * (3 * maximum + 1) / 4 + (1 - share) * maximum, 1, maximum)
        self.share = share

    def drawn(self, rng: np.random.Generator) -> tuple[int, int]:
        """n and k of a batch: iterations without gradient, and those after them with it."""
        assert self.maximum is not None
        if rng.random() >= self.share:
            return 0, self.maximum
        without = int(rng.integers(self.maximum))
        return without, int(rng.integers(1, self.maximum - without + 1))

    def draw(self, rng: np.random.Generator, index: int, batch_size: int) -> np.ndarray:
        return np.asarray(sum(self.drawn(rng)))

    def window(self, seed: int, index: int) -> int:
        return self.drawn(self.stream(seed, index))[1]


class PoissonPerSequence(IterationSampler):
    """The draw of Parcae (arXiv 2604.12946): every sequence of the batch has a count of its own."""

    def draw(self, rng: np.random.Generator, index: int, batch_size: int) -> np.ndarray:
        return np.asarray(rng.poisson(self.mean, size=batch_size))
