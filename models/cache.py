"""Keys and values of past positions, addressed by (layer, iteration, position).

Column p of a row holds its position p: padding is not stored, rows have lengths of their own, and to drop positions is
to shorten a row. One tensor a layer, grown by need in both directions, iterations and columns.

A policy says which stored iteration stands in, at iteration i, for a position that was iterated d times (`source`):

    full      i                every iteration its own; all positions have the same depth, cached equals uncached
    deepest   min(i, d - 1)    a position that stopped early answers with its deepest iteration
    shared    its latest among the iterations i mod ring; ring times less memory than it has iterations, and lossy

`deepest` is kept by writing, not by looking up: what stops early is copied to the later iterations (`hold`), so that
reading iteration i is a plain slice whatever the positions' depths.

Shapes: B batch, T positions of this call, N tokens of this call, K key/value heads, S columns read, W head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from mull.models.loop import Iterations, check_count

Slot = tuple[int, int]  # (layer, iteration), both from 0
Policy = Literal["full", "deepest", "shared"]
FIRST_COLUMNS = 64  # columns taken at first; doubled by need


@dataclass(frozen=True)
class Cells:
    """Where tokens stand in the cache when they do not simply follow on what all rows hold.

    Attributes:
        rows, columns: (N,) int64, of each token that is stored.
        picked: (N,) int64, which of the call's B * T tokens these are; None when all are, in order.
        read_rows: (B',) int64, the rows whose keys are attended to; None for all of them.
        end: S, columns to read.
    """

    rows: Tensor
    columns: Tensor
    picked: Tensor | None
    read_rows: Tensor | None
    end: int


def source(policy: Policy, iteration: int, depth: int, ring: int = 1) -> int:
    """The iteration whose keys stand in at `iteration` for a position iterated `depth` times (both as in the head)."""
    if policy == "full":
        return iteration
    if policy == "deepest" or iteration % ring >= depth:
        return min(iteration, depth - 1)
    return depth - 1 - (depth - 1 - iteration) % ring


def append(stored: tuple[Tensor, Tensor], keys: Tensor, values: Tensor, start: int) -> tuple[Tensor, Tensor]:
    """Store (B, T, K, W) from column `start` on; return all columns up to their end, (B, K, S, W) each."""
    new = keys.shape[1]
    stored[0].narrow(2, start, new).copy_(keys.transpose(1, 2))
    stored[1].narrow(2, start, new).copy_(values.transpose(1, 2))
    return stored[0].narrow(2, 0, start + new), stored[1].narrow(2, 0, start + new)


@dataclass(frozen=True)
class Window:
    """Some layers of a cache at one iteration, for tokens that follow on what all rows hold: plain tensors, which a
    compiled block can take.

    Attributes:
        stored: keys and values of each layer, (B, K, columns, W).
        start: columns held.
    """

    stored: list[tuple[Tensor, Tensor]]
    start: int

    def extend(self, slot: Slot, keys: Tensor, values: Tensor, cells: None) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        return append(self.stored[slot[0]], keys, values, self.start)


class Cache:
    """Keys and values for one batch of sequences.

    Args:
        batch_size, kv_heads, max_length, head_dim: B, K, most positions of a row, W.
        device, dtype: of the stored tensors.
        policy, ring: see the head of this file; ring counts iterations, for `shared` only.
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
        self.kv_heads, self.head_dim, self.max_length = kv_heads, head_dim, max_length
        self.device, self.dtype = device, dtype
        self.lengths = [0] * batch_size  # positions held, by row
        self.depth: Iterations | None = None  # of everything stored, under `full`
        self.total = 0  # iterations of the deepest row that was here
        self.layers: dict[int, Tensor] = {}  # layer -> (2, iterations, B, K, columns, W): keys, then values
        self.views: dict[Slot, tuple[Tensor, Tensor]] = {}  # (layer, place) -> its part of `layers`: slicing takes time
        self.capacity: tuple[float, ...] | None = None  # of the routed passes of everything stored so far

    @property
    def batch_size(self) -> int:
        return len(self.lengths)

    @property
    def length(self) -> int:
        """Positions of the longest row."""
        return max(self.lengths, default=0)

    @property
    def even(self) -> bool:
        """Whether all rows are equally long."""
        return len(set(self.lengths)) <= 1

    def check(self, counts: list[int], iterations: Iterations | None) -> None:
        """Raise a ValueError unless `counts` more positions, by row, at this depth fit behind what is stored."""
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
        self.depth, self.total = iterations, self.deepest(iterations)

    def deepest(self, iterations: Iterations | None) -> int:
        """How many iterations a call at these counts has, which rows reach together: those of the deepest row that was
        ever here, since the keys of all rows are addressed from its first on."""
        if isinstance(iterations, Tensor):
            return max(int(iterations.max()), self.total if self.length else 0)
        return iterations or 0

    def reserve_capacity(self, capacity: tuple[float, ...]) -> None:
        """Check that a call routes as the stored ones did: states of one capacity cannot stand in for another's."""
        if self.length and capacity != self.capacity:
            raise ValueError(
                f"the cache was filled at capacity={self.capacity} and cannot continue at {capacity}; use a new cache"
            )
        self.capacity = capacity

    def extend(self, slot: Slot, keys: Tensor, values: Tensor, cells: Cells | None) -> tuple[Tensor, Tensor]:
        """Store (B, T, K, W) at `cells`, or behind what all rows hold; return what is to be attended to, (B', K, S, W).

        Tokens outside `cells` (padding) are not stored.
        """
        layer, place = slot[0], self.place(slot[1])
        if cells is None:
            start = self.length
            return append(self.storage(layer, place, start + keys.shape[1]), keys, values, start)
        stored = self.storage(layer, place, cells.end)
        for held, given in zip(stored, (keys, values), strict=True):
            tokens = given.flatten(0, 1).to(self.dtype)
            held[cells.rows, :, cells.columns] = tokens if cells.picked is None else tokens[cells.picked]
        read = [held.narrow(2, 0, cells.end) for held in stored]
        if cells.read_rows is not None:
            read = [held.index_select(0, cells.read_rows) for held in read]
        return read[0], read[1]

    def place(self, iteration: int) -> int:
        """Where an iteration is kept."""
        return iteration % self.ring if self.policy == "shared" else iteration

    def window(self, first: int, count: int, iteration: int, new: int) -> Window:
        """What layers first .. first + count - 1 hold at an iteration, with room for `new` more positions."""
        columns = self.length + new + 1  # all columns would be of another layout
        place = self.place(iteration)
        return Window([self.storage(first + i, place, columns) for i in range(count)], self.length)

    def reserve(self, layer: int, iterations: int, columns: int) -> None:
        """Make room for what a call is about to store at so many iterations of a layer: bit by bit would be copied."""
        if self.policy == "full":
            self.grow(layer, iterations - 1, columns)

    def fill(self, layer: int, first: int, last: int, keys: Tensor, values: Tensor) -> None:
        """Store one position, (B, 1, K, W), behind what all rows hold, at the iterations first .. last - 1 of a layer:
        a state that does not move has the same keys at all of them. Not for `shared`."""
        start = self.length
        self.storage(layer, last - 1, start + 1)
        column = self.layers[layer][:, first:last, ..., start, :]
        column[0], column[1] = keys[:, 0], values[:, 0]

    def read(self, slot: Slot, end: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the first `end` columns of all rows, (B, K, end, W) each. Not for `shared`."""
        keys, values = self.storage(*slot, end)
        return keys.narrow(2, 0, end), values.narrow(2, 0, end)

    def storage(self, layer: int, place: int, columns: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer at one iteration, (B, K, columns or more, W) each; makes room if there is none."""
        views = self.views.get((layer, place))
        if views is None or views[0].shape[2] < columns:
            held = self.grow(layer, place, columns)
            views = self.views[layer, place] = (held[0, place], held[1, place])
        return views

    def grow(self, layer: int, place: int, columns: int) -> Tensor:
        """The layer's tensor with room for this iteration and so many columns."""
        held = self.layers.get(layer)
        if held is not None and place < held.shape[1] and columns <= held.shape[4]:
            return held
        places = max(place + 1, 0 if held is None else held.shape[1])
        if place:  # a layer of the loop: all iterations at once where all will come, otherwise as they come
            depth = self.depth if isinstance(self.depth, int) else 1
            few = {"full": depth, "shared": min(depth, self.ring), "deepest": 2 * place}
            places = max(places, few[self.policy])
        width = FIRST_COLUMNS if held is None else held.shape[4]
        while width <= columns:  # a prompt that just fits would be copied at its first new token
            width *= 2
        width = min(width, self.max_length + 1)  # a column more than is filled: see `window`
        shape = (2, places, self.batch_size, self.kv_heads, width, self.head_dim)
        grown = torch.empty(shape, dtype=self.dtype, device=self.device)
        known = 0 if held is None else held.shape[4]
        grown[..., known:, :] = 0  # what is masked must still be a number
        if held is not None:
            grown[:, : held.shape[1], ..., :known, :] = held
            grown[:, held.shape[1] :, ..., :known, :] = held[:, -1:]  # what has stopped answers from here on
        self.layers[layer] = grown
        self.views = {slot: pair for slot, pair in self.views.items() if slot[0] != layer}
        return grown

    def hold(self, rows: Tensor, columns: Tensor, depth: int) -> None:
        """Let the tokens (N,), which have stopped at `depth`, answer with their last iteration at all later ones."""
        if self.policy == "full":
            return
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
        copy = Cache(
            len(rows), self.kv_heads, self.max_length, self.head_dim, self.device, self.dtype, self.policy, self.ring
        )
        index = torch.tensor(rows, dtype=torch.int64, device=self.device)
        copy.lengths = [self.lengths[row] for row in rows]
        copy.depth = self.depth[index] if isinstance(self.depth, Tensor) else self.depth
        copy.total, copy.capacity = self.total, self.capacity
        copy.layers = {layer: held.index_select(2, index) for layer, held in self.layers.items()}
        return copy

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values allocated so far."""
        return sum(held.nbytes for held in self.layers.values())

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one more position of one row takes."""
        return sum(2 * held.shape[1] * self.kv_heads * self.head_dim * held.itemsize for held in self.layers.values())


def same_depth(one: Iterations | None, other: Iterations | None) -> bool:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)
    return one == other
