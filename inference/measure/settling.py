"""Had the model finished thinking, and does that tell right answers from wrong ones?

    residual   r = |s_R - s_{R-1}| / |s_R|              how far the last iteration moved the state of a position
    settled    the largest r of an example's scored positions is below a threshold
    AUC        the chance that a right example has a smaller largest r than a wrong one, ties counting half

The area under the curve (AUC) is the Mann-Whitney statistic; its interval is that of DeLong et al. (Biometrics 44,
1988) on the logit scale, which stays within 0 and 1. Where every pair is ordered alike there is no variance to
estimate; then the bound is the one that the smaller class alone would give a share of 1: 0.025^(1/n).
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


def settling(residuals: Sequence[float], right: Sequence[bool] | None) -> Settling:
    """Of the largest residual of each example, and whether its answer is right throughout; None for text, whose windows
    are no answers."""
    values = np.asarray(residuals, dtype=np.float64)
    if not len(values):
        return Settling(math.nan, math.nan, 0.0, 1.0, None, None, None)
    calm = -np.where(np.isnan(values), np.inf, values)  # a state that has left the numbers is the least settled
    area = None if right is None else auc(calm, np.asarray(right, dtype=bool))
    below = int((values < SETTLED).sum())
    share = below / len(values), *wilson(below, len(values))
    return Settling(float(values.mean()), *share, *(area or (None, None, None)))


def auc(scores: np.ndarray, positive: np.ndarray) -> tuple[float, float, float] | None:
    """The chance that a positive has the higher score, with its 95 % interval; None without both kinds.

    Args:
        scores: (n,).
        positive: (n,) bool.
    """
    yes, no = scores[positive], scores[~positive]
    if not len(yes) or not len(no):
        return None
    above, below = wins(yes, no), 1 - wins(no, yes)  # of each positive over negatives, and of each negative under
    area = float(above.mean())
    fewer = min(len(yes), len(no))
    if area in (0.0, 1.0):
        bound = 0.025 ** (1 / fewer)
        return (area, bound, 1.0) if area else (area, 0.0, 1 - bound)
    variance = above.var(ddof=1) / len(yes) + below.var(ddof=1) / len(no) if fewer > 1 else 0.0
    if variance == 0:  # one of a kind, or nothing but ties
        return area, 0.0, 1.0
    centre, half = math.log(area / (1 - area)), Z * math.sqrt(variance) / (area * (1 - area))
    return area, 1 / (1 + math.exp(half - centre)), 1 / (1 + math.exp(-half - centre))


def wins(scores: np.ndarray, others: np.ndarray) -> np.ndarray:
    """For each score the share of the others below it, ties counting half."""
    ordered = np.sort(others)
    below, not_above = np.searchsorted(ordered, scores, "left"), np.searchsorted(ordered, scores, "right")
    return (below + not_above) / 2 / len(others)
