"""Which tokens take a routed pass.

    top-k       the round(c n) tokens of a sequence of n with the largest router logit       (training; not causal)
    threshold   every token whose router logit is at least h(c | e)                          (eval; causal)
    h(c | e)    the (1 - c) quantile of the logit on held-out text, behind passes of mean capacity e: what passes before
                made of a state is what this one reads, so that after 90 % of the tokens other logits are among the top
                10 % than after 10 %. Between the capacities of a grid linear in the quantile of a normal distribution,
                which is what the logits nearly have
    auxiliary   BCE(logit, was selected by top-k), so that the logit alone tells what top-k decides (MoR, 2507.10524)

Shapes: B batch, T positions, G capacities of the grid, of a pass or of those before it.
"""

import math
from bisect import bisect
from collections.abc import Callable, Sequence
from functools import cache
from statistics import NormalDist, fmean
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mull.models.config import Capacity

Selection = Literal["top_k", "threshold"]
Select = Callable[[Tensor, Tensor | None, float, Tensor], Tensor]  # (logits, eligible, capacity, h on the grid) -> bool

GRID = (0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.98)  # capacities at which thresholds are measured


def check_capacity(capacity: Capacity, n_passes: int) -> tuple[float, ...]:
    """One share for each of n_passes routed passes; otherwise a ValueError that names what is wrong."""
    if isinstance(capacity, str) or not isinstance(capacity, Sequence | int | float) or isinstance(capacity, bool):
        raise ValueError(f"capacity must be a number from 0 to 1, or one for each routed pass, not {capacity!r}")
    shares = tuple(capacity) if isinstance(capacity, Sequence) else (capacity,) * n_passes
    if len(shares) != n_passes:
        raise ValueError(
            f"capacity names {len(shares)} routed passes and there are {n_passes}, one fewer than iterations; "
            "give one number for all, or one for each"
        )
    for share in shares:
        if not isinstance(share, int | float) or isinstance(share, bool) or not 0 <= share <= 1:
            raise ValueError(f"capacity {share!r} lies outside 0 .. 1; it is the share of tokens that take a pass")
    return tuple(float(share) for share in shares)


def first_passes(capacity: Capacity, count: int) -> Capacity:
    """The capacity of the routed passes of a run of so many passes, of which there may be fewer than are named."""
    return capacity[: count - 1] if isinstance(capacity, Sequence) else capacity


def top_k(logits: Tensor, eligible: Tensor | None, capacity: float, _: Tensor) -> Tensor:
    """(B, T) logits -> (B, T) bool: the largest of each row; at least one token, and the earlier of two equals."""
    if eligible is not None:
        logits = logits.masked_fill(~eligible, -math.inf)
    length = logits.shape[1] if eligible is None else eligible.sum(dim=1, keepdim=True)
    k = torch.as_tensor(capacity * length).round().clamp(min=1).to(logits.device)
    rank = logits.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    selected = rank < k
    return selected if eligible is None else selected & eligible


def over_threshold(logits: Tensor, eligible: Tensor | None, capacity: float, thresholds: Tensor) -> Tensor:
    """(B, T) logits -> (B, T) bool: each token by itself, whatever the others are. thresholds: (G,), h on the grid."""
    selected = torch.ones_like(logits, dtype=torch.bool) if capacity == 1 else logits >= threshold(thresholds, capacity)
    return selected if eligible is None else selected & eligible


def threshold(thresholds: Tensor, capacity: float) -> Tensor:
    """h(c) out of h on the grid, (..., G) -> (...)."""
    right, weight = between(capacity)
    return torch.lerp(thresholds[..., right - 1], thresholds[..., right], weight)


def behind(thresholds: Tensor, before: float) -> Tensor:
    """h on the grid behind passes of mean capacity `before`: (..., G, G), earlier capacity first, -> (..., G)."""
    right, weight = between(min(max(before, GRID[0]), GRID[-1]))
    return torch.lerp(thresholds[..., right - 1, :], thresholds[..., right, :], weight)


def before(capacity: Sequence[float], t: int) -> float:
    """Mean capacity of the passes before routed pass t = 1 .. R - 1 in the same layer. The first one has only layers
    below behind it; they matter little, and are taken to be as it is, so that later passes change no earlier one."""
    return round(fmean(capacity[: max(1, t - 1)]), 9)


@cache
def between(capacity: float) -> tuple[int, float]:
    """Where h(c) lies: the place of the next capacity of the grid, and the share of the way to it."""
    right = min(max(bisect(GRID, capacity), 1), len(GRID) - 1)
    z, left, end = (normal_threshold(share) for share in (capacity, GRID[right - 1], GRID[right]))
    return right, (z - left) / (end - left)


SELECTIONS: dict[Selection, Select] = {"top_k": top_k, "threshold": over_threshold}


def expected_thresholds(temperature: float = 1.0) -> Tensor:
    """h on the grid, (G,), before any calibration: logits of a fresh router are normal with variance 2/5, divided by
    the temperature of the router."""
    # Scaled in Python: models are built on the meta device to be loaded into, and for arithmetic there torch imports
    # its compiler.
    scale = math.sqrt(2 / 5) / temperature
    return torch.tensor([scale * normal_threshold(share) for share in GRID])


def normal_threshold(share: float) -> float:
    """What a share of a standard normal distribution exceeds; six sigma stand for all and nothing."""
    return NormalDist().inv_cdf(min(max(1 - share, 1e-9), 1 - 1e-9))


def auxiliary(logits: Tensor, selected: Tensor, eligible: Tensor | None) -> Tensor:
    """Mean binary cross entropy in nats of (B, T) logits against what was selected."""
    losses = F.binary_cross_entropy_with_logits(logits.float(), selected.float(), reduction="none")
    return losses.mean() if eligible is None else (losses * eligible).sum() / eligible.sum().clamp(min=1)
