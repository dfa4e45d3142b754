"""Placing: where the tokens of a call stand behind what a cache holds, and what each of them sees.

Three cases: no cache, and rows may be padded; tokens that follow on what all rows hold alike; and rows of lengths of
their own. The result is a `Context` (positions.py), computed once for all layers and iterations of the call.

Shapes: B batch, T positions of this call, S positions attended to.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mull.models.cache import Cache
from mull.models.positions import Context, within


@dataclass(frozen=True)
class Sight:
    """What tokens see of each other, whatever the call.

    Attributes:
        window: the latest tokens that heads with a window see; None where no head has one.
        reach: how many positions a convolution joins.
        causal: whether order is; if not, a token sees the later ones too, a window reaches as far to the right as to
            the left, and there is no cache.
        board: whether a window reaches as far in rows as in columns.
    """

    window: int | None = None
    reach: int = 1
    causal: bool = True
    board: bool = False

    def apart(self, at: Tensor) -> Tensor:
        """How far each key stands before each query, (..., T, T), of positions (..., T); how far away on either side
        where order is not causal. On a board, rows and columns (..., T, 2), it is the longer of the two ways."""
        if self.board:
            return (at[..., :, None, :] - at[..., None, :, :]).abs().amax(dim=-1)
        back = at[..., :, None] - at[..., None, :]
        return back if self.causal else back.abs()


def place(
    shape: tuple[int, int],
    device: torch.device,
    valid: Tensor | None,
    cache: Cache | None,
    rotation: Callable[[Tensor], Tensor | None],
    sight: Sight = Sight(),  # frozen
) -> Context:
    """The context of a whole call of this shape, (B, T), behind what the cache holds.

    `valid`, (B, T) bool, is false at padding; `rotation` makes cos and sin of positions, (...,) int64, or of rows and
    columns, (..., 2), on a board.
    """
    (batch_size, n_tokens), window = shape, sight.window
    if cache is None:
        columns = torch.arange(n_tokens, device=device)
        back = columns[:, None] - columns
        if not sight.causal:
            back = back.abs()
        if valid is None:
            at = on_board(columns, n_tokens) if sight.board else columns
            near = None if n_tokens == 1 or window is None else within(sight.apart(at), window)
            return Context(columns, rotation(at), n_tokens, window=window, near=near)
        positions = (valid.cumsum(dim=1) - 1).clamp(min=0)
        at = on_board(positions, valid.sum(dim=1, keepdim=True)) if sight.board else positions
        mask = ((back >= 0) & valid[:, None, :]) | (back == 0)  # padding sees itself: a softmax over nothing is NaN
        near = None if window is None else (mask & (sight.apart(at) < window))[:, None]
        before = earlier_tokens(valid, positions, sight.reach) if sight.reach > 1 else None
        return Context(positions, rotation(at), n_tokens, mask[:, None], window=window, near=near, before=before)
    counts = [n_tokens] * batch_size if valid is None else valid.sum(dim=1).tolist()
    end = max([1, *(length + count for length, count in zip(cache.lengths, counts, strict=True))])
    columns = torch.arange(end, device=device)
    if len(set(cache.lengths)) == 1 and min(counts) == n_tokens:
        held = cache.length
        positions = columns[held:]
        back = positions[:, None] - columns
        after = back >= 0 if held and n_tokens > 1 else None
        near = None if n_tokens == 1 else within(back, window)
        return Context(positions, rotation(positions), end, after, window=window, near=near, cache=cache, counts=counts)
    real = torch.ones(shape, dtype=torch.bool, device=device) if valid is None else valid
    before_call = torch.tensor(cache.lengths, device=device)[:, None]
    positions = (before_call + real.cumsum(dim=1) - 1).clamp(min=0)
    back = (positions[:, :, None] - columns)[:, None]
    near = within(back, window)
    stored = real.flatten().nonzero().flatten()
    stands = (stored // n_tokens, positions.flatten()[stored])
    return Context(
        positions,
        rotation(positions),
        end,
        back >= 0,
        window=window,
        near=near,
        cache=cache,
        counts=counts,
        stands=stands,
        stored=stored,
    )


def on_board(positions: Tensor, counts: Tensor | int) -> Tensor:
    """Row and column, (..., T, 2), of positions (..., T) of rows of so many tokens, (..., 1): on the smallest square
    board that holds them, read row by row."""
    if isinstance(counts, int):  # no tensor, which would have to be sent to the device of the others
        side: Tensor | int = math.isqrt(counts - 1) + 1
    else:
        side = counts.to(torch.float64).sqrt().ceil().to(torch.int64).clamp(min=1)  # of a row of padding alone too
    return torch.stack([positions // side, positions % side], dim=-1)


def earlier_tokens(valid: Tensor, positions: Tensor, reach: int) -> tuple[tuple[Tensor, Tensor], ...]:
    """`Context.before` of padded rows: valid (B, T) bool, positions (B, T)."""
    batch_size, n_tokens = valid.shape
    columns = torch.arange(n_tokens, device=valid.device).expand(batch_size, -1)
    # the column of each position; padding is written to one more, which nobody reads
    column_of = columns.new_zeros(batch_size, n_tokens + 1)
    column_of.scatter_(1, torch.where(valid, positions, n_tokens), columns)
    first = n_tokens * torch.arange(batch_size, device=valid.device)[:, None]
    asked = [positions - j for j in range(1, reach)]
    return tuple((first + column_of.gather(1, p.clamp(min=0)), p >= 0) for p in asked)
