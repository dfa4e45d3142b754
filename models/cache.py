"""Keys and values of past positions, addressed by (layer, iteration, position).

Column p of a row holds its position p: padding is not stored, rows have lengths of their own, and to drop positions is
to shorten a row. One tensor a layer, grown by need in both directions, iterations and columns.

A policy says which stored iteration stands in, at iteration i, for a position that was iterated d times:

    full      i                every iteration its own; all positions have the same depth, cached equals uncached
    deepest   min(i, d - 1)    a position that stopped early answers with its deepest iteration
    shared    its latest among the iterations i mod ring; ring times less memory than it has iterations, and lossy

`deepest` is kept by writing, not by looking up: the keys of a position that stops early are copied to the later
iterations (`hold`), so that reading iteration i is a plain slice whatever the positions' depths.

Shapes: B batch, T positions of this call, N tokens of this call, K key/value heads, S columns read, W head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from mull.models.loop import Iterations, check_count, deepest

Slot = tuple[int, int]  # (layer, iteration), both from 0
Policy = Literal["full", "deepest", "shared"]
FIRST_COLUMNS = 64  # columns taken at first; doubled by need


def trail(slot: Slot) -> Slot:
    """Where what the convolution of a layer joins is kept: beside the keys and values of the slot, as one tensor."""
    return -1 - slot[0], slot[1]


def append(stored: tuple[Tensor, ...], given: tuple[Tensor, ...], start: int) -> tuple[Tensor, ...]:
    """Store (B, T, K, W) each from column `start` on; return all columns up to their end, (B, K, S, W) each."""
    new = given[0].shape[1]
    for held, part in zip(stored, given, strict=True):
        held.narrow(2, start, new).copy_(part.transpose(1, 2))
    return tuple([held.narrow(2, 0, start + new) for held in stored])


@dataclass(frozen=True)
class Block:
    """What some layers of a cache hold at one iteration, for tokens that follow on what all rows hold: plain tensors,
    which compiled code can take in place of the cache.

    Attributes:
        stored: keys and values of each layer, (B, K, columns, W) each.
        trails: what the convolution of each layer joins, (B, 1, columns, C) alone; none without convolutions.
        length: columns that are filled.
    """

    stored: list[tuple[Tensor, ...]]
    trails: list[tuple[Tensor, ...]]
    length: int

    def append(self, slot: Slot, *given: Tensor) -> tuple[Tensor, ...]:
        """Like `Cache.append`; the layers count from 0, and the iteration is the block's own."""
        layer = slot[0]
        return append(self.stored[layer] if layer >= 0 else self.trails[-1 - layer], given, self.length)


class Cache:
    """Keys and values for one batch of sequences.

    Args:
        batch_size: B, rows.
        kv_heads: K, heads of keys and values.
        max_length: most positions of a row.
        head_dim: W, width of a head.
        device: of the stored tensors.
        dtype: of the stored tensors.
        policy: what is kept of which iterations; see the head of this file.
        ring: iterations that share a place in turn, for the policy `shared` only.
    """

    def __init__(
        self,
        batch_size: int,
        kv_heads: int,
        max_length: int,
        head_dim: int,
        device: torch.device,
        dtype: torch.dtype,
        policy: Policy = "full",
        ring: int = 1,
    ) -> None:
        if policy not in get_args(Policy):
            raise ValueError(f"policy must be one of {', '.join(get_args(Policy))}, not {policy!r}")
        self.policy, self.ring = policy, check_count("ring", ring)
        if self.ring > 1 and policy != "shared":
            raise ValueError(f"ring={ring} is of the cache policy shared; policy {policy} has none, leave ring out")
        self.kv_heads, self.head_dim, self.max_length = kv_heads, head_dim, max_length
        self.device, self.dtype = device, dtype
        self.lengths = [0] * batch_size  # positions held, by row
        self.depth: Iterations | None = None  # of everything stored, under `full`
        self.total = 0  # iterations of the deepest row that was here
        # layer -> (2, iterations, B, K, columns, W), keys, then values; of a trail (1, iterations, B, 1, columns, C)
        self.layers: dict[int, Tensor] = {}
        self.views: dict[Slot, tuple[Tensor, ...]] = {}  # (layer, index) -> its part of `layers`: slicing takes time
        self.capacity: tuple[float, ...] | None = None  # of the routed passes of everything stored so far

    @property
    def batch_size(self) -> int:
        return len(self.lengths)

    @property
    def length(self) -> int:
        """Positions of the longest row."""
        return max(self.lengths, default=0)

    def admit(self, counts: list[int], iterations: Iterations | None) -> None:
        """Take a call of `counts` more positions, by row, at this depth, or raise a ValueError that says why it does
        not fit behind what is stored."""
        end = max(length + count for length, count in zip(self.lengths, counts, strict=True))
        if end > self.max_length:
            raise ValueError(
                f"the cache holds {self.max_length} positions and {end} are needed; "
                f"ask new_cache for max_length={end} or more"
            )
        if self.policy != "full":
            if isinstance(iterations, Tensor):
                raise ValueError(f"one count per row needs a cache of policy full, not {self.policy}")
        elif self.length and not same_depth(self.depth, iterations):
            raise ValueError(
                f"the cache was filled at iterations={self.depth} and cannot continue at {iterations}; "
                "use a new cache, or one of policy deepest"
            )
        self.depth, self.total = iterations, self.iterations_of(iterations)

    def iterations_of(self, iterations: Iterations | None) -> int:
        """How many iterations a call at these counts has.

        All rows of a call end together, so iteration j of a row with count R_b is stored at total - R_b + j, where
        `total` is the count of the deepest row that this cache ever held. It must therefore never shrink.
        """
        if isinstance(iterations, Tensor):
            return max(deepest(iterations), self.total if self.length else 0)
        return iterations or 0

    def reserve_capacity(self, capacity: tuple[float, ...]) -> None:
        """Check that a call routes as the stored ones did: states of one capacity cannot stand in for another's."""
        if self.length and capacity != self.capacity:
            raise ValueError(
                f"the cache was filled at capacity={self.capacity} and cannot continue at {capacity}; use a new cache"
            )
        self.capacity = capacity

    def append(self, slot: Slot, *given: Tensor) -> tuple[Tensor, ...]:
        """Store (B, T, K, W) behind what all rows, equally long, hold; return all columns up to there, (B, K, S, W).
        What is given are keys and values, or what a convolution joins, at its `trail`."""
        start = self.length
        return append(self.storage(slot, start + given[0].shape[1], given[0].shape[2:]), given, start)

    def write(self, slot: Slot, rows: Tensor, columns: Tensor, end: int, *given: Tensor) -> None:
        """Store tokens, (N, K, W), each at its own row and column (N,), all of them before column `end`."""
        for held, part in zip(self.storage(slot, end, given[0].shape[1:]), given, strict=True):
            held[rows, :, columns] = part.to(self.dtype)

    def read(self, slot: Slot, end: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the first `end` columns of all rows, (B, K, end, W) each."""
        keys, values = self.storage(slot, end)
        return keys.narrow(2, 0, end), values.narrow(2, 0, end)

    def block(self, first: int, count: int, iteration: int) -> Block:
        """What the layers first .. first + count - 1 hold at an iteration, with room for one more position."""
        columns = self.length + 2  # one column more than is filled: all columns at once would have another layout
        slots = [(first + i, iteration) for i in range(count)]
        trails = [trail(slot) for slot in slots if trail(slot)[0] in self.layers]
        return Block(
            [self.storage(slot, columns) for slot in slots],
            [self.storage(slot, columns) for slot in trails],
            self.length,
        )

    def fill(self, layer: int, first: int, last: int, keys: Tensor, values: Tensor) -> None:
        """Store one position, (B, 1, K, W), behind what all rows hold, at the iterations first .. last - 1 of a layer:
        a state that does not move has the same keys at all of them. Not for `shared`."""
        start = self.length
        self.storage((layer, last - 1), start + 1)
        column = self.layers[layer][:, first:last, ..., start, :]
        column[0], column[1] = keys[:, 0], values[:, 0]

    def storage(self, slot: Slot, columns: int, shape: Sequence[int] | None = None) -> tuple[Tensor, ...]:
        """Keys and values of a layer at one iteration, (B, K, columns or more, W) each, or what is kept at a trail;
        makes room if there is none, for entries of this shape, (K, W)."""
        layer, index = slot
        if self.policy == "shared":
            index %= self.ring
        views = self.views.get((layer, index))
        if views is None or views[0].shape[2] < columns:
            held = self.grow(layer, index, columns, shape)
            views = self.views[layer, index] = tuple(held[:, index].unbind(0))
        return views

    def grow(self, layer: int, index: int, columns: int, shape: Sequence[int] | None = None) -> Tensor:
        """The layer's tensor with room for so many columns at iterations up to this index; entries have the shape
        (K, W), those that are there where none is named."""
        held = self.layers.get(layer)
        if held is not None and index < held.shape[1] and columns <= held.shape[4]:
            return held
        iterations = max(index + 1, 0 if held is None else held.shape[1])
        if index:  # a layer of the loop: all iterations at once where all will come, otherwise as they come
            few = {"full": self.total, "shared": min(self.total, self.ring), "deepest": 2 * index}
            iterations = max(iterations, few[self.policy])
        width = FIRST_COLUMNS if held is None else held.shape[4]
        while width <= columns:  # a prompt that just fits would be copied at its first new token
            width *= 2
        width = min(width, self.max_length + 1)  # a column more than is filled: see `block`
        if held is not None:
            shape = (held.shape[3], held.shape[5])
        heads, entry = (self.kv_heads, self.head_dim) if shape is None else shape
        streams = 2 if layer >= 0 else 1
        grown = torch.empty(
            (streams, iterations, self.batch_size, heads, width, entry), dtype=self.dtype, device=self.device
        )
        known = 0 if held is None else held.shape[4]
        grown[..., known:, :] = 0  # what is masked must still be a number
        if held is not None:
            grown[:, : held.shape[1], ..., :known, :] = held
            grown[:, held.shape[1] :, ..., :known, :] = held[:, -1:]  # what has stopped answers from here on
        self.layers[layer] = grown
        self.views = {slot: pair for slot, pair in self.views.items() if slot[0] != layer}
        return grown

    def hold(self, rows: Tensor, columns: Tensor, depth: int) -> None:
        """Copy the last keys and values of tokens that stopped at `depth`, rows and columns (N,), to later iterations:
        whoever goes on thinking reads a token that stopped as it was when it stopped. Not for `full`."""
        for held in self.layers.values():
            if held.shape[1] > depth:
                held[:, depth:, rows, :, columns] = held[:, depth - 1 : depth, rows, :, columns]

    def advance(self, counts: list[int]) -> None:
        """Take the positions of a finished call into use, `counts` by row."""
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]

    def rollback(self, lengths: list[int]) -> None:
        """Drop all positions from `lengths` on, by row."""
        for row, (asked, length) in enumerate(zip(lengths, self.lengths, strict=True)):
            if not 0 <= asked <= length:
                raise ValueError(f"row {row} holds {length} positions and cannot be cut to {asked}")
        self.lengths = list(lengths)

    def fork(self, rows: list[int]) -> Cache:
        """A cache of its own with copies of these rows, in this order; a row may be named more than once."""
        new, index = copy(self), torch.tensor(rows, dtype=torch.int64, device=self.device)
        new.lengths = [self.lengths[row] for row in rows]
        new.depth = self.depth[index] if isinstance(self.depth, Tensor) else self.depth
        new.layers = {layer: held.index_select(2, index) for layer, held in self.layers.items()}
        new.views = {}
        return new

    def reserve(self, columns: int) -> None:
        """Make room for so many columns in all layers that are there."""
        for layer, held in list(self.layers.items()):
            self.grow(layer, held.shape[1] - 1, columns)

    def first(self, rows: int) -> Cache:
        """The first rows in the same memory: what is written to either is in both, until one of them grows."""
        new = copy(self)
        new.lengths = self.lengths[:rows]
        new.depth = self.depth[:rows] if isinstance(self.depth, Tensor) else self.depth
        new.layers = {layer: held.narrow(2, 0, rows) for layer, held in self.layers.items()}
        new.views = {}
        return new

    @staticmethod
    def gathered(rows: Sequence[tuple[Cache, int]], max_length: int | None = None) -> Cache:
        """A cache of its own with copies of rows of several caches, (cache, row) each, in this order.

        It holds what one call would have stored that had all of these rows from the start: under `full` rows of
        different counts in the loop of an `IteratedModel` end together. The caches must hold something.

        Args:
            rows: at least one; a row may be named more than once.
            max_length: most positions of a row; None means that of the caches.

        Raises:
            ValueError: the caches differ in policy, number type or capacity, or are `shared`; or they hold routed
                passes, which begin together and do not end so, of rows of different counts.
        """
        like = rows[0][0]
        caches = list({id(cache): cache for cache, _ in rows}.values())
        if like.policy == "shared" or any(
            (cache.policy, cache.dtype, cache.capacity) != (like.policy, like.dtype, like.capacity) for cache in caches
        ):
            raise ValueError("rows of caches that differ in policy, dtype or capacity, or are shared, cannot be joined")
        new = copy(like)
        new.lengths, new.layers, new.views = [cache.lengths[row] for cache, row in rows], {}, {}
        depths = [cache.depth_of(row) for cache, row in rows]
        new.total = max(cache.total for cache in caches) if like.policy == "deepest" else max(depths)
        alike = all(isinstance(cache.depth, int | None) and cache.depth == like.depth for cache in caches)
        counts = {*depths, *(cache.total for cache in caches)}
        if like.capacity is not None and like.policy == "full" and len(counts) > 1:
            raise ValueError("rows of caches of inner thinking cannot be joined where their counts differ")
        new.depth = like.depth if alike else torch.tensor(depths, dtype=torch.int64, device=like.device)
        new.max_length = max(cache.max_length for cache in caches) if max_length is None else max_length
        width = 1 + min(new.max_length, new.length + FIRST_COLUMNS)
        for layer in like.layers:
            held = [cache.layers[layer] for cache, _ in rows]
            looped = max(part.shape[1] for part in held) > 1
            iterations = (new.total if like.policy == "full" else max(part.shape[1] for part in held)) if looped else 1
            streams, _, _, heads, _, entry = held[0].shape
            shape = (streams, iterations, len(rows), heads, width, entry)
            joined = new.layers[layer] = torch.empty(shape, dtype=like.dtype, device=like.device)
            for place, (part, (cache, row)) in enumerate(zip(held, rows, strict=True)):
                own = part[:, :, row, :, : cache.lengths[row]]
                if looped and like.policy == "full":  # the row's last iterations are the last of all
                    own = own[:, cache.total - depths[place] : cache.total]
                first = iterations - own.shape[1] if like.policy == "full" else 0
                into = joined[:, :, place, :, : cache.lengths[row]]
                into[:, first : first + own.shape[1]] = own
                into[:, :first] = 0  # what is masked, and what is not begun, must still be numbers
                joined[:, :, place, :, cache.lengths[row] :] = 0
                if like.policy == "deepest":  # what has stopped answers from there on
                    into[:, own.shape[1] :] = own[:, -1:]
        return new

    def depth_of(self, row: int) -> int:
        """The count of a row; 0 where there is no loop, or rows stop position by position."""
        return int(self.depth[row]) if isinstance(self.depth, Tensor) else self.depth or 0


def same_depth(one: Iterations | None, other: Iterations | None) -> bool:
    """Whether two iteration counts are the same: both None, the same number, or equal tensors of a count for each
    row."""
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)
    return one == other
