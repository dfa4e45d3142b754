"""Which tokens take a routed pass, and how they get there and back: select, gather, scatter.

    top-k       the round(c n) tokens of a sequence of n with the largest router logit       (training; not causal)
    threshold   every token whose router logit is at least h(c)                              (eval; causal)
    h(c)        the (1 - c) quantile of the logit on held-out text; between the capacities of a grid linear in that of a
                normal distribution, which is what the logits nearly have
    auxiliary   BCE(logit, was selected by top-k), so that the logit alone tells what top-k decides (MoR, 2507.10524)

Shapes: B batch, T positions, k positions that take the pass (the most of any row; other rows are filled up), G grid.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mull.models.layers import Frame

Capacity = float | Sequence[float]  # share of the tokens that a routed pass takes: one for all passes, or one for each
Selection = Literal["top_k", "threshold"]
Select = Callable[[Tensor, Tensor | None, float, Tensor], Tensor]  # (logits, eligible, capacity, h on the grid) -> bool

GRID = (0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.98)  # capacities at which thresholds are measured
BLOCK = 8  # see `choose`


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
    if capacity == 1:
        selected = torch.ones_like(logits, dtype=torch.bool)
    else:
        right = min(max(bisect(GRID, capacity), 1), len(GRID) - 1)
        z, left, end = (normal_threshold(share) for share in (capacity, GRID[right - 1], GRID[right]))
        selected = logits >= torch.lerp(thresholds[right - 1], thresholds[right], (z - left) / (end - left))
    return selected if eligible is None else selected & eligible


SELECTIONS: dict[Selection, Select] = {"top_k": top_k, "threshold": over_threshold}


def expected_thresholds() -> Tensor:
    """h on the grid, (G,), before any calibration: logits of a fresh router are normal with variance 2/5."""
    return math.sqrt(2 / 5) * torch.tensor([normal_threshold(share) for share in GRID])


def normal_threshold(share: float) -> float:
    """What a share of a standard normal distribution exceeds; six sigma stand for all and nothing."""
    return NormalDist().inv_cdf(min(max(1 - share, 1e-9), 1 - 1e-9))


def auxiliary(logits: Tensor, selected: Tensor, eligible: Tensor | None) -> Tensor:
    """Mean binary cross entropy in nats of (B, T) logits against what was selected."""
    losses = F.binary_cross_entropy_with_logits(logits.float(), selected.float(), reduction="none")
    return losses.mean() if eligible is None else (losses * eligible).sum() / eligible.sum().clamp(min=1)


@dataclass(frozen=True)
class Chosen:
    """Where the tokens of a pass stand.

    Attributes:
        index: (B, k) int64, ascending in each row among the tokens that take the pass.
        taken: (B, k) bool, false where a row has fewer than k and is filled up with others.
    """

    index: Tensor
    taken: Tensor

    def gather(self, x: Tensor) -> Tensor:
        """(B, T, ...) -> (B, k, ...)."""
        return x[torch.arange(len(x), device=x.device)[:, None], self.index]

    def scatter(self, x: Tensor, new: Tensor) -> Tensor:
        """(B, T, ...) with `new` (B, k, ...) where the pass was taken."""
        taken = self.taken.view(*self.taken.shape, *[1] * (x.dim() - 2))
        index = self.index.view(*self.index.shape, *[1] * (x.dim() - 2)).expand(new.shape)
        return x.scatter(1, index, torch.where(taken, new.to(x.dtype), self.gather(x)))

    def frame(self, frame: Frame, n_keys: int, n_tokens: int) -> Frame:
        """The frame of these tokens alone, as queries to n_keys keys; the last n_tokens, T, are their own call's."""
        rotation = frame.rotation
        if rotation is not None:
            cos, sin = rotation
            shared = cos.dim() == 3  # (T, 1, W): the same positions in every row
            rotation = (cos[self.index], sin[self.index]) if shared else (self.gather(cos), self.gather(sin))
        mask = frame.mask
        if mask is None:
            columns = torch.arange(n_keys, device=self.index.device)
            mask = columns <= n_keys - n_tokens + self.index[..., None]
        elif mask.dim() == 2:
            mask = mask[self.index]
        else:
            mask = self.gather(mask[:, 0])
        positions = self.gather(frame.positions.expand(len(self.index), -1))
        return Frame(positions, rotation, mask[:, None], frame.cache)


def choose(selected: Tensor, block: int = 1) -> Chosen | None:
    """(B, T) bool -> where they stand; None when all tokens are selected, so that nothing need be gathered.

    k is rounded up to a multiple of `block`. Matrix products compute the last of an odd number of rows with another
    kernel, whose sums differ in the last bit: in whole blocks a token's result does not depend on how many others go.
    """
    least, count = selected.sum(dim=1).aminmax()
    if int(least) == selected.shape[1]:
        return None
    if int(count) == 0:  # what most positions find in decoding: nothing to sort
        nowhere = torch.zeros(len(selected), 0, device=selected.device)
        return Chosen(index=nowhere.long(), taken=nowhere.bool())
    k = min(-(-int(count) // block) * block, selected.shape[1])
    index = (~selected).to(torch.uint8).argsort(dim=1, stable=True)[:, :k]
    return Chosen(index=index, taken=selected.gather(1, index))
