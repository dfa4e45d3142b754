"""95 % intervals for what an evaluation reports. Examples are independent draws; the tokens of one example are not.

    wilson          a share of examples (exact match): Wilson's score interval
    clustered_share a share of tokens (accuracy): every example is one cluster
    clustered_mean  a mean over tokens that has no upper bound (loss): every example is one cluster
    paired_share    a difference of two shares of the same tokens (accuracy at two counts): every example is one cluster

All counts read the same examples, and what makes an example hard is hard at every count: intervals of single counts
overlap where nearly every example agrees on which count is better. So a difference is taken example by example, and its
interval is that of the mean of these; the loss needs no formula of its own, it is `clustered_mean` of differences. The
variance has a closed form, which is why nothing is resampled; a bootstrap of whole examples agrees with it
(tests/inference/measure/test_intervals.py).

z is the 97.5 % point of the normal distribution; with few examples (below about 10) all are approximations.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

Z = 1.959963984540054


class Interval(NamedTuple):
    """The two ends of a 95 % interval."""

    low: float
    high: float


def wilson(successes: float, n: int) -> Interval:
    """Wilson's score interval of a share of n >= 1 independent trials (Wilson 1927); never of zero width. It ends at 0
    where nothing succeeded and at 1 where everything did, exactly: as numbers the two terms need not cancel."""
    share, z2 = successes / n, Z**2
    center = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z * math.sqrt(share * (1 - share) / n + z2 / (4 * n**2)) / (1 + z2 / n)
    low, high = max(0.0, center - half), min(1.0, center + half)
    return Interval(low if successes > 0 else 0.0, high if successes < n else 1.0)


def clustered_share(sums: Sequence[float], sizes: Sequence[int]) -> Interval:
    """Interval of sum(sums) / sum(sizes), where example i has `sums[i]` right tokens out of `sizes[i]` scored ones.

    The spread is that of the examples' own shares x_i, weighted by w_i = sizes[i] / mean(sizes). It would be zero when
    all are right, which says no more than that a failing example is rare. So, as Agresti and Coull (1998) do for single
    trials, z^2 examples are added, half of them all right and half all wrong: at accuracy 1 in n examples the interval
    reaches down to about 1 - 4.6 / n, and with one token an example it is Agresti and Coull's. It contains the share.
    """
    n, extra = len(sums), Z**2
    mean_size = sum(sizes) / n
    weighted = [(size / mean_size, right / size) for right, size in zip(sums, sizes, strict=True)]
    center = (sum(w * x for w, x in weighted) + extra / 2) / (n + extra)
    spread = sum((w * (x - center)) ** 2 for w, x in weighted) + extra / 2 * (center**2 + (1 - center) ** 2)
    half = Z * math.sqrt(spread) / (n + extra)
    return Interval(max(0.0, center - half), min(1.0, center + half))


def clustered_mean(sums: Sequence[float], sizes: Sequence[int]) -> Interval | None:
    """Interval of m = sum(sums) / sum(sizes) from the residuals sums[i] - m sizes[i] (the ratio estimator's
    linearised variance, Cochran 1977, section 6.4); None for a single example, whose spread is unknown."""
    n, total = len(sums), sum(sizes)
    if n == 1:
        return None
    mean = sum(sums) / total
    squares = sum((value - mean * size) ** 2 for value, size in zip(sums, sizes, strict=True))
    half = Z * math.sqrt(squares * n / (n - 1)) / total
    return Interval(mean - half, mean + half)


def paired_share(differences: Sequence[float], sizes: Sequence[int]) -> Interval:
    """Interval of d = sum(differences) / sum(sizes), where example i has differences[i] more right tokens out of its
    sizes[i] scored ones in one of two answers to it than in the other.

    The spread is that of the examples' own differences. It would be zero where the two never differ, which says no more
    than that differing is rare. So, as Agresti and Min (2005) do for matched pairs, two examples are added to it: one
    without a difference, and half of one all of whose tokens differ in either direction.
    """
    n, extra = len(sizes), 2.0
    mean_size = sum(sizes) / n
    difference = sum(differences) / sum(sizes)
    spread = sum(((each - difference * size) / mean_size) ** 2 for each, size in zip(differences, sizes, strict=True))
    spread += difference**2 + ((1 - difference) ** 2 + (1 + difference) ** 2) / 2
    half = Z * math.sqrt(spread) / (n + extra)
    return Interval(max(-1.0, difference - half), min(1.0, difference + half))
