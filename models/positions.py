"""Context: where the tokens of one call stand, what they see, and how some of them are gathered and scattered back.

Every layer and every iteration of a call gets the same context, so it is computed once. There are two kinds:

    whole       B rows of T positions, x (B, T, D). Order is causal; padding and what a cache holds need a mask
    gathered    N of the B * T positions as one row, x (1, N, D): those that still think (`narrow`), or those that take
                a routed pass (`pick`). All arithmetic by token runs on the N; only attention goes by row, so the
                queries are laid out by row in `Group`s, and their answers are collected again

Shapes: B batch, T positions of this call, N gathered tokens, S positions attended to, D model width, H query heads,
K key/value heads, W head width; of a group B' rows of A queries.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from mull.models.cache import Block, Cache, Slot

SEGMENT = 256  # positions whose queries share one attention; see `Context.pick`
Look = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]  # queries, keys, values, mask -> answers by query


@dataclass(frozen=True)
class Group:
    """Gathered tokens whose attention is one call: where each of them stands among the queries, which are by row.

    Attributes:
        rows: (B',) int64, ascending, the rows of the call that have a token in the group.
        width: A, queries of a row.
        places: (N,) int64 into the B' * A queries, the place of each token.
        occupants: (B' * A,) int64 into the N tokens, the token at each place. A place without a token repeats the
            first one, and nobody collects the answer there.
        full: every place has its token, in order.
        mask: which keys each query sees, (B', 1, A, S) bool, or what is added to its scores; no key is read beyond S.
    """

    rows: Tensor
    width: int
    places: Tensor
    occupants: Tensor
    full: bool
    mask: Tensor | None = None

    @staticmethod
    def of(tokens: Tensor, length: int, block: int = 1) -> Group:
        """Places for tokens, (N,) ascending indices into B * T, T = length; A is a multiple of block."""
        rows, row, per_row = (tokens // length).unique_consecutive(return_inverse=True, return_counts=True)
        count = torch.arange(len(tokens), device=tokens.device)
        width = -(-int(per_row.max()) // block) * block
        places = row * width + count - (per_row.cumsum(0) - per_row)[row]
        occupants = tokens.new_zeros(len(rows) * width).index_copy_(0, places, count)
        return Group(rows, width, places, occupants, len(tokens) == len(occupants))

    def spread(self, x: Tensor) -> Tensor:
        """Gathered tokens (1, N, ...) -> queries by row (B', A, ...)."""
        placed = x[0] if self.full else x[0].index_select(0, self.occupants)
        return rearrange(placed, "(b a) ... -> b a ...", a=self.width)

    def collect(self, x: Tensor) -> Tensor:
        """By row (B', A, ...) -> the gathered tokens (1, N, ...)."""
        placed = rearrange(x, "b a ... -> (b a) ...")
        return (placed if self.full else placed.index_select(0, self.places))[None]

    def visible(self, x: Tensor) -> Tensor:
        """Keys or values (B, K, S or more, W) of all rows -> those that the queries may see, (B', K, S, W)."""
        assert self.mask is not None
        seen = x.narrow(2, 0, self.mask.shape[-1])
        return seen if len(seen) == len(self.rows) else seen.index_select(0, self.rows)


@dataclass(frozen=True)
class Context:
    """Where the tokens of a call stand; see the head of this file.

    Attributes:
        positions: (T,), or (B, T) where rows differ, int64, counting tokens only; (1, N) when gathered.
        rotation: cos and sin, (T, 1, W/2, 2), or (B, T, 1, W/2, 2) where rows differ; None without positions.
        end: S, how many columns of keys there are to see.
        mask: which keys each query sees, (T, S) or (B, 1, T, S) bool; None for plain causal order.
        cache: where keys and values are kept; None in training.
        counts: tokens of each row that this call adds to the cache, without padding; None where it adds none.
        stands: row and column in the cache of each stored token, (N,) int64; None when all follow on what rows hold.
        stored: (N,) int64 into the tokens of this context, those that are stored; None when all are, in order.
        tokens: (N,) int64 into the B * T of the whole call: which these are; None when they are all of it.
        taken: how many of `tokens` stand for themselves; the rest repeat the last and fill up.
        groups: how the queries of gathered tokens are laid out; None for a whole call.
    """

    positions: Tensor
    rotation: Tensor | None
    end: int
    mask: Tensor | None = None
    cache: Cache | Block | None = None
    counts: list[int] | None = None
    stands: tuple[Tensor, Tensor] | None = None
    stored: Tensor | None = None
    tokens: Tensor | None = None
    taken: int = 0
    groups: tuple[Group, ...] | None = None

    # Keys and attention -----------------------------------------------------------------------------------------------

    def keep(self, slot: Slot, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values, (B, T, K, W), where there is a cache; return all that are seen, (B, K, S, W) each."""
        if self.cache is None:
            return keys.transpose(1, 2), values.transpose(1, 2)
        if self.stands is None:
            return self.cache.append(slot, keys, values)
        assert isinstance(self.cache, Cache)
        keys, values = (rearrange(x, "b t k w -> (b t) k w") for x in (keys, values))
        if self.stored is not None:
            keys, values = keys[self.stored], values[self.stored]
        self.cache.write(slot, *self.stands, keys, values, self.end)
        return self.cache.read(slot, self.end)

    def attend(self, look: Look, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Answers of queries (B, T, H, W) to keys and values (B, K, S, W): (B, T, H, W). Queries and answers of
        gathered tokens are one row, (1, N, H, W), and are looked up group by group."""
        if self.groups is None:
            return look(queries, keys, values, self.mask)
        parts = queries.split([len(group.places) for group in self.groups], dim=1)
        answers = [
            group.collect(look(group.spread(part), group.visible(keys), group.visible(values), group.mask))
            for part, group in zip(parts, self.groups, strict=True)
        ]
        return answers[0] if len(answers) == 1 else torch.cat(answers, dim=1)

    def one_token_block(self, first: int, count: int, iteration: int) -> Context | None:
        """This context with what `count` layers, from number `first` on, hold at one iteration in place of the cache.

        None unless the call has one token a row, follows on what all rows hold, and these hold two positions or more,
        since compilers treat lengths of 0 and 1 as special cases.
        """
        cache, one_token = self.cache, self.positions.shape[-1] == 1
        if not isinstance(cache, Cache) or self.stands is not None or not one_token or cache.length < 2:
            return None
        return Context(self.positions, self.rotation, self.end, cache=cache.block(first, count, iteration))

    def commit(self, depth: int | None) -> None:
        """Take the positions of this call into the cache's lengths.

        Args:
            depth: iterations that all of them had; None where there is no loop, or each position is held already.
        """
        assert isinstance(self.cache, Cache) and self.counts is not None
        if depth is not None and self.cache.policy != "full":
            self.cache.hold(*self.cells(), depth)
        self.cache.advance(self.counts)

    def cells(self) -> tuple[Tensor, Tensor]:
        """Row and column in the cache of each token that is stored, (N,) each."""
        if self.stands is not None:
            return self.stands
        assert isinstance(self.cache, Cache)
        rows = torch.arange(self.cache.batch_size, device=self.positions.device)
        return rows.repeat_interleave(len(self.positions)), self.positions.repeat(len(rows))

    # Gathering and scattering -----------------------------------------------------------------------------------------

    def narrow(self, tokens: Tensor) -> Context:
        """The context of some tokens only, (N,) ascending indices into the B * T of this whole call.

        The call must keep its keys in a cache: there the tokens find those of the others.
        """
        assert self.cache is not None and self.tokens is None
        length = self.positions.shape[-1]
        positions, rotation = self.placed(tokens)
        group, end = Group.of(tokens, length), int(positions.max()) + 1
        mask = (group.spread(positions)[:, :, None] >= torch.arange(end, device=tokens.device))[:, None]
        stands, groups = (tokens // length, positions[0]), (replace(group, mask=mask),)
        return Context(
            positions, rotation, end, cache=self.cache, stands=stands, tokens=tokens, taken=len(tokens), groups=groups
        )

    def pick(self, selected: Tensor, block: int = 1) -> Context | None:
        """The context of the selected tokens, (B, T) bool, of this whole call; None when no token need be gathered.

        Two things are for equal bits. A token's result must not depend on how many other tokens go with it, but a
        matrix product of few rows, or of the last of an odd number of rows, takes another kernel, whose sums differ in
        the last bit. So N, and the queries of a row, are rounded up to multiples of `block`; and where blocks are asked
        for, all tokens together are gathered too, unless their rows are whole blocks and one segment as they stand.

        Segments save time: what a mask hides is computed all the same, so each attends to keys up to its own end.
        """
        length, tokens = selected.shape[1], selected.flatten().nonzero().flatten()
        taken = len(tokens)
        if taken == selected.numel() and (block == 1 or (length % block == 0 and length <= SEGMENT)):
            return None
        sizes = [taken]
        if length > SEGMENT:
            segment = tokens % length // SEGMENT
            tokens, sizes = tokens[segment.argsort(stable=True)], segment.bincount().tolist()
        groups = []
        for number, part in enumerate(tokens.split(sizes)):
            if len(part):
                group = Group.of(part, length, block)
                mask = self.segment_mask(number * SEGMENT, part[group.occupants], length)
                groups.append(replace(group, mask=rearrange(mask, "(b a) s -> b 1 a s", a=group.width)))
        idle = -taken % block
        if idle:  # what fills up gets the answer of the last token once more
            tokens = torch.cat([tokens, tokens[-1:].expand(idle)])
            last = groups[-1]
            groups[-1] = replace(last, places=torch.cat([last.places, last.places[-1:].expand(idle)]), full=False)
        positions, rotation = self.placed(tokens)
        return Context(
            positions, rotation, self.end, cache=self.cache, tokens=tokens, taken=taken, groups=tuple(groups)
        )

    def segment_mask(self, start: int, tokens: Tensor, length: int) -> Tensor:
        """What tokens (A,) of the segment of positions that begins at `start` see of the keys, (A, S).

        Bool where this context has a mask. Otherwise only order counts, and it is cheaper to add 0 to the score of a
        key that is seen and minus infinity to others, up to the end of the segment.
        """
        column = tokens % length
        if self.mask is not None:
            return self.mask[column] if self.mask.dim() == 2 else self.mask.flatten(0, 2)[tokens]
        size, earlier = min(SEGMENT, length - start), self.end - length + start
        hidden = torch.full((size, size), -math.inf, device=tokens.device).triu_(1)
        own = hidden.index_select(0, column - start)
        return F.pad(own, (earlier, 0)) if earlier else own

    def placed(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """Positions (1, N) and rotation (1, N, 1, W/2, 2) of some tokens, (N,) indices into the B * T of this call."""
        index = tokens % self.positions.shape[-1] if self.positions.dim() == 1 else tokens
        rotation = None if self.rotation is None else self.rotation.flatten(0, -4).index_select(0, index)[None]
        return self.positions.flatten()[index][None], rotation

    def gather(self, x: Any) -> Any:
        """Of a tensor of the whole call, (B, T, ...), what belongs to these tokens, (1, N, ...).

        A tuple is gathered part by part, and None stays None. A tensor (1, 1, ...) is the same for all tokens.
        """
        if x is None:
            return None
        if isinstance(x, tuple):
            return tuple(self.gather(part) for part in x)
        assert self.tokens is not None
        if x.shape[:2] == (1, 1):
            return x.expand(1, len(self.tokens), *x.shape[2:])
        return rearrange(x, "b t ... -> (b t) ...").index_select(0, self.tokens)[None]

    def scatter(self, x: Tensor, new: Tensor, in_place: bool = False) -> Tensor:
        """A tensor of the whole call, (B, T, ...), with `new` (1, N, ...) at these tokens, in the type of x."""
        assert self.tokens is not None
        write = Tensor.index_copy_ if in_place else Tensor.index_copy
        own, given = self.tokens[: self.taken], new[0, : self.taken]  # what fills up does not stand for itself
        return write(x.flatten(0, 1), 0, own, given.to(x.dtype)).view(x.shape)


def place(
    shape: tuple[int, int],
    device: torch.device,
    valid: Tensor | None,
    cache: Cache | None,
    rotation: Callable[[Tensor], Tensor | None],
) -> Context:
    """The context of a whole call of this shape, (B, T), behind what the cache holds.

    `valid`, (B, T) bool, is false at padding; `rotation` makes cos and sin of positions, (...,) int64.
    """
    batch_size, n_tokens = shape
    if cache is None:
        columns = positions = torch.arange(n_tokens, device=device)
        if valid is None:
            return Context(positions, rotation(positions), n_tokens)
        positions = (valid.cumsum(dim=1) - 1).clamp(min=0)
        causal, itself = columns[:, None] >= columns, columns[:, None] == columns
        mask = (causal & valid[:, None, :]) | itself  # padding sees itself: a softmax over nothing is NaN
        return Context(positions, rotation(positions), n_tokens, mask[:, None])
    counts = [n_tokens] * batch_size if valid is None else valid.sum(dim=1).tolist()
    end = max([1, *(length + count for length, count in zip(cache.lengths, counts, strict=True))])
    columns = torch.arange(end, device=device)
    if len(set(cache.lengths)) == 1 and min(counts) == n_tokens:
        held = cache.length
        positions = columns[held:]
        after = positions[:, None] >= columns if held and n_tokens > 1 else None
        return Context(positions, rotation(positions), end, after, cache, counts)
    real = torch.ones(shape, dtype=torch.bool, device=device) if valid is None else valid
    before = torch.tensor(cache.lengths, device=device)[:, None]
    positions = (before + real.cumsum(dim=1) - 1).clamp(min=0)
    mask = (positions[:, :, None] >= columns)[:, None]
    stored = real.flatten().nonzero().flatten()
    stands = (stored // n_tokens, positions.flatten()[stored])
    return Context(positions, rotation(positions), end, mask, cache, counts, stands, stored)
