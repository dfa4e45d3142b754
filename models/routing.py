"""Which tokens take a routed pass, and how they get there and back: select, gather, scatter.

    top-k       the round(c n) tokens of a sequence of n with the largest router logit       (training; not causal)
    threshold   every token whose router logit is at least h(c)                              (eval; causal)
    h(c)        the (1 - c) quantile of the logit on held-out text; between the capacities of a grid linear in that of a
                normal distribution, which is what the logits nearly have
    auxiliary   BCE(logit, was selected by top-k), so that the logit alone tells what top-k decides (MoR, 2507.10524)

Shapes: B batch, T positions, N tokens that take a pass, of all rows, G grid.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from statistics import NormalDist
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mull.models.layers import Frame, Lanes

Capacity = float | Sequence[float]  # share of the tokens that a routed pass takes: one for all passes, or one for each
Selection = Literal["top_k", "threshold"]
Select = Callable[[Tensor, Tensor | None, float, Tensor], Tensor]  # (logits, eligible, capacity, h on the grid) -> bool

GRID = (0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.98)  # capacities at which thresholds are measured
BLOCK = 8  # see `choose`
SEGMENT = 256  # positions whose queries share an attention; see `Chosen.frame`


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
    selected = torch.ones_like(logits, dtype=torch.bool) if capacity == 1 else logits >= threshold(thresholds, capacity)
    return selected if eligible is None else selected & eligible


def threshold(thresholds: Tensor, capacity: float) -> Tensor:
    """h(c) out of h on the grid, (..., G) -> (...)."""
    right, weight = between(capacity)
    return torch.lerp(thresholds[..., right - 1], thresholds[..., right], weight)


@cache
def between(capacity: float) -> tuple[int, float]:
    """Where h(c) lies: the place of the next capacity of the grid, and the share of the way to it."""
    right = min(max(bisect(GRID, capacity), 1), len(GRID) - 1)
    z, left, end = (normal_threshold(share) for share in (capacity, GRID[right - 1], GRID[right]))
    return right, (z - left) / (end - left)


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
    """The tokens of a pass, out of a call of B rows of T positions.

    Attributes:
        tokens: (N,) int64 into the B * T: those that take the pass, then repeats of the last that fill up.
        sizes: how many of them lie in each segment of the positions, from the first to the last that has any; the
            tokens come by segment, then ascending.
        length: T.
        block: N, and the queries of a row, are multiples of this; see `choose`.
    """

    tokens: Tensor
    sizes: list[int]
    length: int
    block: int

    @property
    def taken(self) -> int:
        """How many tokens take the pass."""
        return sum(self.sizes)

    def gather(self, x: Tensor) -> Tensor:
        """(B, T, ...) -> (1, N, ...)."""
        return x.flatten(0, 1).index_select(0, self.tokens)[None]

    def scatter(self, x: Tensor, new: Tensor) -> Tensor:
        """(B, T, ...) with `new` (1, N, ...) where the pass was taken."""
        return x.flatten(0, 1).index_copy(0, self.tokens[: self.taken], self.real(new, x)).view(x.shape)

    def scatter_(self, x: Tensor, new: Tensor) -> Tensor:
        """The same in place."""
        x.view(-1, *x.shape[2:]).index_copy_(0, self.tokens[: self.taken], self.real(new, x))
        return x

    def real(self, new: Tensor, x: Tensor) -> Tensor:
        """Of results (1, N, ...) those of tokens that take the pass, in the type of x."""
        return new[0, : self.taken].to(x.dtype)

    def frame(self, frame: Frame, keys: Tensor) -> Frame:
        """The frame of these tokens alone, as queries to keys (B, K, S, W), the last T of which their own call's.

        What a mask hides is computed all the same: so each segment of the positions is an attention of its own, in
        plain causal order to the keys up to its end, and to all of them where the frame has a mask.
        """
        runs = []
        for i, tokens in enumerate(self.tokens[: self.taken].split(self.sizes)):
            if len(tokens):
                lanes = Lanes.of(tokens, self.length, self.block)
                mask = self.mask(frame, keys, i * SEGMENT, tokens[lanes.occupants])
                runs.append(replace(lanes, mask=mask.view(len(lanes.rows), 1, lanes.width, -1)))
        idle = len(self.tokens) - self.taken
        if idle:  # what fills up gets the answer of the last once more
            last = runs[-1]
            places = torch.cat([last.places, last.places[-1:].expand(idle)])
            runs[-1] = replace(last, places=places, full=False)
        positions, rotation = frame.placed(self.tokens)
        return Frame(positions, rotation, None, frame.cache, lanes=runs)

    def mask(self, frame: Frame, keys: Tensor, start: int, tokens: Tensor) -> Tensor:
        """What tokens (A,) of the segment that starts at `start` see, (A, S): bool, or where only order counts, as
        it is cheaper, 0 for a key that is seen and minus infinity for others."""
        n_keys, column = keys.shape[2], tokens % self.length
        if frame.mask is not None:
            return frame.mask[column] if frame.mask.dim() == 2 else frame.mask.flatten(0, 2)[tokens]
        size, earlier = min(SEGMENT, self.length - start), n_keys - self.length + start
        hidden = torch.full((size, size), -math.inf, dtype=keys.dtype, device=keys.device).triu_(1)
        own = hidden.index_select(0, column - start)
        return F.pad(own, (earlier, 0)) if earlier else own


def choose(selected: Tensor, block: int = 1) -> Chosen | None:
    """(B, T) bool -> the selected tokens of all rows; None when these are all, so that nothing need be gathered.

    N is rounded up to a multiple of `block`. Matrix products of few rows, and of the last of an odd number of rows,
    take another kernel, whose sums differ in the last bit: in whole blocks a token's result does not depend on how
    many others go. For the same reason segments are of positions, not of tokens, and where blocks are asked for, all
    tokens together are gathered too, unless without gathering rows of queries are whole blocks and one segment anyway.
    """
    length, tokens = selected.shape[1], selected.flatten().nonzero().flatten()
    taken = len(tokens)
    if taken == selected.numel() and (block == 1 or (length % block == 0 and length <= SEGMENT)):
        return None
    sizes = [taken]
    if length > SEGMENT:
        segment = tokens % length // SEGMENT
        tokens, sizes = tokens[segment.argsort(stable=True)], segment.bincount().tolist()
    fill = tokens[-1:].expand(-taken % block)
    return Chosen(torch.cat([tokens, fill]) if len(fill) else tokens, sizes, length, block)
