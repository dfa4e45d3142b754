"""Had the model finished thinking, and does that tell right answers from wrong ones?

    residual   r = |s_R - s_{R-1}| / |s_R|              how far the last iteration moved the state of a position
    settled    the largest r of the positions that an example's answer depends on is below a threshold: in a causal
               model all up to its last scored one, since a position that waits for those before it rests
    AUC        the chance that a right example has a smaller largest r than a wrong one, ties counting half

The area under the curve (AUC) is the Mann-Whitney statistic; its interval is that of DeLong et al. (Biometrics 44,
1988) on the logit scale, which stays within 0 and 1. Where an example occurs several times, once at each count, its
occurrences are no independent witnesses: then it is that of Obuchowski (Biometrics 53, 1997), by example,

    var A = I+/(I+ - 1) sum_i P_i^2 / M^2 + I-/(I- - 1) sum_i N_i^2 / N^2 + 2 I/(I - 1) sum_i P_i N_i / (M N)

with P_i the sum over the right occurrences of example i of (the share of the N wrong ones that it is calmer than) - A,
N_i the same of its wrong ones and the M right ones that are calmer, and I, I+, I- how many examples there are, that are
ever right, ever wrong. With one occurrence each it is DeLong's. Where every pair is ordered alike there is no variance
to estimate; then the bound is the one that the smaller class alone would give a share of 1: 0.025^(1/n).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mull.checkpoints.quantities import SETTLED as SETTLED  # of the residual; the threshold of the rule `latent`
from mull.inference.measure.intervals import Z, wilson


class Settling(NamedTuple):
    """What residuals of examples say at one count.

    Attributes:
        residual: the largest of an example, on average over examples.
        settled: share of examples whose largest residual is below SETTLED.
        settled_low: the lower end of its 95 % interval.
        settled_high: the upper end.
        auc: how well small residuals tell right examples from wrong ones; 0.5 says nothing. None where all are alike.
        auc_low: the lower end of its 95 % interval.
        auc_high: the upper end.
    """

    residual: float
    settled: float
    settled_low: float
    settled_high: float
    auc: float | None
    auc_low: float | None
    auc_high: float | None


def settling(
    residuals: Sequence[float], right: Sequence[bool] | None, example: Sequence[int] | None = None
) -> Settling:
    """Of the largest residual of each example, and whether its answer is right throughout; None for text, whose windows
    are no answers. `example` says which example each is of, where one occurs several times."""
    values = np.asarray(residuals, dtype=np.float64)
    if not len(values):
        return Settling(math.nan, math.nan, 0.0, 1.0, None, None, None)
    calm = -np.where(np.isnan(values), np.inf, values)  # a state that has left the numbers is the least settled
    of = None if example is None else np.asarray(example)
    area = None if right is None else auc(calm, np.asarray(right, dtype=bool), of)
    below = int((values < SETTLED).sum())
    share = below / len(values), *wilson(below, len(values))
    return Settling(float(values.mean()), *share, *(area or (None, None, None)))


def auc(
    scores: np.ndarray, positive: np.ndarray, cluster: np.ndarray | None = None
) -> tuple[float, float, float] | None:
    """The chance that a positive has the higher score, with its 95 % interval; None without both kinds.

    Args:
        scores: (n,).
        positive: (n,) bool.
        cluster: (n,), what each score is of, where several are of one thing; None: each of its own.
    """
    yes, no = scores[positive], scores[~positive]
    if not len(yes) or not len(no):
        return None
    above, below = wins(yes, no), 1 - wins(no, yes)  # of each positive over negatives, and of each negative under
    area = float(above.mean())
    _, of = np.unique(np.arange(len(scores)) if cluster is None else cluster, return_inverse=True)
    of_yes, of_no = of[positive], of[~positive]
    fewer = min(len(np.unique(of_yes)), len(np.unique(of_no)))
    if area in (0.0, 1.0):
        bound = 0.025 ** (1 / fewer)
        return (area, bound, 1.0) if area else (area, 0.0, 1 - bound)
    n = int(of.max()) + 1
    up = np.bincount(of_yes, above - area, n) / len(yes)
    down = np.bincount(of_no, below - area, n) / len(no)
    variance = unbiased(up**2, of_yes) + unbiased(down**2, of_no) + 2 * unbiased(up * down, of) if fewer > 1 else 0.0
    if variance <= 0:  # one of a kind, or nothing but ties
        return area, 0.0, 1.0
    centre, half = math.log(area / (1 - area)), Z * math.sqrt(variance) / (area * (1 - area))
    return area, 1 / (1 + math.exp(half - centre)), 1 / (1 + math.exp(-half - centre))


def unbiased(terms: np.ndarray, of: np.ndarray) -> float:
    """The sum of terms, one a cluster, times I / (I - 1), with I the clusters that occur in `of`: each was taken from a
    mean that was estimated from them all."""
    count = len(np.unique(of))
    return float(terms.sum()) * count / (count - 1)


def wins(scores: np.ndarray, others: np.ndarray) -> np.ndarray:
    """For each score the share of the others below it, ties counting half."""
    ordered = np.sort(others)
    below, not_above = np.searchsorted(ordered, scores, "left"), np.searchsorted(ordered, scores, "right")
    return (below + not_above) / 2 / len(others)
