"""Context: where the tokens of one call stand, what they see, and how some of them are gathered and scattered back.

Every layer and every iteration of a call gets the same context, so it is computed once. There are two kinds:

    whole       B rows of T positions, x (B, T, D). Order is causal unless the configuration says otherwise; padding and
                what a cache holds need a mask
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

from mull.models.cache import Block, Cache, Slot, trail

SEGMENT = 256  # positions whose queries share one attention; see `Context.pick`
Look = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]  # queries, keys, values, mask -> answers by query


def within(back: Tensor, window: int | None) -> Tensor | None:
    """Which keys a head with this window sees, of those that stand so many tokens back; None without a window."""
    return None if window is None else (back >= 0) & (back < window)


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
        near: the same for heads that see the latest tokens only, bool; None where no head does.
    """

    rows: Tensor
    width: int
    places: Tensor
    occupants: Tensor
    full: bool
    mask: Tensor | None = None
    near: Tensor | None = None

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

    def seen(self, near: bool) -> Tensor | None:
        """Which keys each query sees, with or without the window."""
        return self.near if near else self.mask

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
        mask: which keys each query sees, (T, S) or (B, 1, T, S) bool; None for plain order: causal, or all see all.
        window: the latest tokens that heads with a window see; None where no head has one.
        near: which keys those heads see, like `mask`; None too where one query is the last of all.
        before: by distance 1 .. k-1, for each token the index into B * T of the token so far before it, and whether
            there is one, (B, T) each; for convolutions over padded calls without a cache, None otherwise.
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
    window: int | None = None
    near: Tensor | None = None
    before: tuple[tuple[Tensor, Tensor], ...] | None = None
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
            keys, values = self.cache.append(slot, keys, values)
            return keys, values
        self.write(slot, keys, values)
        assert isinstance(self.cache, Cache)
        return self.cache.read(slot, self.end)

    def write(self, slot: Slot, *given: Tensor) -> None:
        """Store what stands where `stands` says, (B, T, K, W) each."""
        assert isinstance(self.cache, Cache) and self.stands is not None
        by_token = [rearrange(x, "b t k w -> (b t) k w") for x in given]
        if self.stored is not None:
            by_token = [x[self.stored] for x in by_token]
        self.cache.write(slot, *self.stands, self.end, *by_token)

    def recent(self, slot: Slot, x: Tensor, count: int) -> list[Tensor]:
        """x (B, T, C) of each token and of the count - 1 tokens before it, nearest first, (B, T, C) each; zero before
        the first. Where there is a cache x is stored, and the tokens of earlier calls are found there."""
        if self.cache is None and self.before is None:
            assert self.groups is None  # routed passes have no convolution
            return [x] + [F.pad(x, (0, 0, j, 0))[:, : x.shape[1]] for j in range(1, count)]
        if self.cache is None:
            assert self.before is not None
            flat = rearrange(x, "b t c -> (b t) c")
            return [x] + [flat[index] * there[..., None] for index, there in self.before[: count - 1]]
        if self.stands is None:
            (held,) = self.cache.append(trail(slot), x[:, :, None])
            end, length = held.shape[2], x.shape[1]
            found = [held[:, 0, max(0, end - length - j) : max(0, end - j)] for j in range(1, count)]
            return [x] + [F.pad(part, (0, 0, length - part.shape[1], 0)).to(x.dtype) for part in found]
        self.write(trail(slot), x[:, :, None])
        assert isinstance(self.cache, Cache)
        (held,) = self.cache.storage(trail(slot), self.end)
        rows = self.rows()
        columns = [self.positions - j for j in range(1, count)]
        found = [held[rows, 0, column.clamp(min=0)] * (column >= 0)[..., None] for column in columns]
        return [x] + [earlier.to(x.dtype) for earlier in found]

    def rows(self) -> Tensor:
        """The row of the cache of each token of this call, in the shape of `positions` where rows differ."""
        if self.tokens is not None:
            assert self.stands is not None
            return self.stands[0][None]
        return torch.arange(len(self.positions), device=self.positions.device)[:, None].expand_as(self.positions)

    def attend(self, look: Look, queries: Tensor, keys: Tensor, values: Tensor, near: bool = False) -> Tensor:
        """Answers of queries (B, T, H, W) to keys and values (B, K, S, W): (B, T, H, W). Queries and answers of
        gathered tokens are one row, (1, N, H, W), and are looked up group by group. With `near` through the window."""
        if self.groups is None:
            if near and self.near is None:  # one query behind all keys: the last of them, and nothing is masked
                assert self.window is not None
                first = max(0, keys.shape[2] - self.window)
                return look(queries, keys[:, :, first:], values[:, :, first:], None)
            return look(queries, keys, values, self.near if near else self.mask)
        parts = queries.split([len(group.places) for group in self.groups], dim=1)
        answers = [
            group.collect(look(group.spread(part), group.visible(keys), group.visible(values), group.seen(near)))
            for part, group in zip(parts, self.groups, strict=True)
        ]
        return answers[0] if len(answers) == 1 else torch.cat(answers, dim=1)

    def one_token_block(self, first: int, count: int, iteration: int, least: int = 2) -> Context | None:
        """This context with what `count` layers, from number `first` on, hold at one iteration in place of the cache.

        None unless the call has one token a row, follows on what all rows hold, and these hold `least` positions or
        more: compilers treat lengths of 0 and 1 as special cases, and so do windows and convolutions those within
        their reach.
        """
        cache, one_token = self.cache, self.positions.shape[-1] == 1
        if not isinstance(cache, Cache) or self.stands is not None or not one_token or cache.length < least:
            return None
        block = cache.block(first, count, iteration)
        return Context(self.positions, self.rotation, self.end, window=self.window, cache=block)

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

    def first(self, rows: int) -> Context:
        """The context of the first rows of this whole call, which keeps its keys in a cache with room for them."""
        assert isinstance(self.cache, Cache) and self.tokens is None and self.counts is not None
        cache, counts = self.cache.first(rows), self.counts[:rows]
        if self.stands is None:  # all rows stand alike
            return replace(self, cache=cache, counts=counts)
        assert self.rotation is None or self.rotation.dim() == 5
        new = sum(counts)
        return replace(
            self,
            positions=self.positions[:rows],
            rotation=None if self.rotation is None else self.rotation[:rows],
            mask=None if self.mask is None else self.mask[:rows],
            near=None if self.near is None else self.near[:rows],
            cache=cache,
            counts=counts,
            stands=(self.stands[0][:new], self.stands[1][:new]),
            stored=None if self.stored is None else self.stored[:new],
        )

    # Gathering and scattering -----------------------------------------------------------------------------------------

    def narrow(self, tokens: Tensor) -> Context:
        """The context of some tokens only, (N,) ascending indices into the B * T of this whole call.

        The call must keep its keys in a cache: there the tokens find those of the others.
        """
        assert self.cache is not None and self.tokens is None
        length = self.positions.shape[-1]
        positions, rotation = self.placed(tokens)
        group, end = Group.of(tokens, length), int(positions.max()) + 1
        back = (group.spread(positions)[:, :, None] - torch.arange(end, device=tokens.device))[:, None]
        near = within(back, self.window)
        return replace(
            self,
            positions=positions,
            rotation=rotation,
            end=end,
            mask=None,
            near=None,
            counts=None,
            stands=(tokens // length, positions[0]),
            stored=None,
            tokens=tokens,
            taken=len(tokens),
            groups=(replace(group, mask=back >= 0, near=near),),
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
                queries = part[group.occupants]
                mask, near = self.segment_mask(number * SEGMENT, queries, length), None
                if self.window is not None:
                    latest = self.latest() if self.near is None else self.near
                    near = rearrange(self.masked(latest, queries, length), "(b a) s -> b 1 a s", a=group.width)
                    near = near[..., : mask.shape[-1]]
                groups.append(replace(group, mask=rearrange(mask, "(b a) s -> b 1 a s", a=group.width), near=near))
        idle = -taken % block
        if idle:  # what fills up gets the answer of the last token once more
            tokens = torch.cat([tokens, tokens[-1:].expand(idle)])
            last = groups[-1]
            groups[-1] = replace(last, places=torch.cat([last.places, last.places[-1:].expand(idle)]), full=False)
        positions, rotation = self.placed(tokens)
        return Context(
            positions,
            rotation,
            self.end,
            window=self.window,
            cache=self.cache,
            tokens=tokens,
            taken=taken,
            groups=tuple(groups),
        )

    def segment_mask(self, start: int, tokens: Tensor, length: int) -> Tensor:
        """What tokens (A,) of the segment of positions that begins at `start` see of the keys, (A, S).

        Bool where this context has a mask. Otherwise only order counts, and it is cheaper to add 0 to the score of a
        key that is seen and minus infinity to others, up to the end of the segment.
        """
        if self.mask is not None:
            return self.masked(self.mask, tokens, length)
        column = tokens % length
        size, earlier = min(SEGMENT, length - start), self.end - length + start
        hidden = torch.full((size, size), -math.inf, device=tokens.device).triu_(1)
        own = hidden.index_select(0, column - start)
        return F.pad(own, (earlier, 0)) if earlier else own

    def latest(self) -> Tensor:
        """`near` of one query behind all keys, (1, S)."""
        assert self.window is not None
        return (torch.arange(self.end, device=self.positions.device) >= self.end - self.window)[None]

    def masked(self, mask: Tensor, tokens: Tensor, length: int) -> Tensor:
        """The rows (A, S) of a mask of this whole call for tokens (A,)."""
        return mask[tokens % length] if mask.dim() == 2 else mask.flatten(0, 2)[tokens]

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
