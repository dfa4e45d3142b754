"""Paired bootstrap: whole problems are drawn with replacement, the same ones for all cells.

What makes a problem hard is hard for every strategy and at every depth, so quantities that are worked out of several
cells (a difference, the place where two curves cross) vary far less than the cells do. Drawing problems, and working
the quantity out anew from each draw, keeps that. Difficulties are drawn from apart, each as often as it has problems.

A quantity may have no value in a draw; it is then given as infinity where it lies beyond everything measured, and the
interval, which is made of values and never of means of them, ends there too.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
DRAWS, LOW, HIGH = 2000, 0.025, 0.975


def weights(sizes: Sequence[int], draws: int = DRAWS, seed: int = 0) -> Floats:
    """How much each problem counts in each draw, (draws + 1, problems), every row of sum 1; row 0 is the problems as
    they are.

    Args:
        sizes: problems of each difficulty, in the order in which their values are concatenated.
        draws: how many.
        seed: of the draws.
    """
    rng = np.random.default_rng([seed, *sizes])
    counts = [rng.multinomial(size, np.full(size, 1 / size), size=draws) for size in sizes]
    drawn = np.concatenate([np.ones((1, sum(sizes))), np.concatenate(counts, axis=1)])
    return np.asarray(drawn / sum(sizes), dtype=float)


def interval(values: Floats) -> tuple[float, float]:
    """The two ends of the 95 % interval of the values (draws,) of a quantity; infinite ones are values like others."""
    low, high = np.quantile(values, [LOW, HIGH], method="inverted_cdf")
    return float(low), float(high)
