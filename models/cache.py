"""Keys and values of past positions, addressed by (layer, iteration, position).

Storage for a (layer, iteration) is allocated whole, for `max_length` positions, when that pair is first used: the
same cache serves any iteration count, and decoding never copies what it already holds. Every iteration keeps its own
keys (the `full` policy): a token at iteration i attends to older tokens at iteration i, so cached equals uncached.

Shapes: B batch, K key/value heads, L max_length, W head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mull.models.loop import Iterations

Slot = tuple[int, int]  # (layer, iteration), both from 0


class Cache:
    """Preallocated keys and values for one batch of sequences that grow together.

    Args:
        batch_size, kv_heads, max_length, head_dim: B, K, L, W.
        device, dtype: of the stored tensors.
    """

    def __init__(
        self, batch_size: int, kv_heads: int, max_length: int, head_dim: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.shape = (batch_size, kv_heads, max_length, head_dim)
        self.batch_size = batch_size
        self.max_length = max_length
        self.length = 0  # columns in use, padding included; the same for every row
        self.valid = torch.zeros(batch_size, max_length, dtype=torch.bool, device=device)  # columns that hold a token
        self.padded = False  # whether any column in use is padding
        self.iterations: Iterations | None = None  # depth of everything stored so far
        self.capacity: tuple[float, ...] | None = None  # of the routed passes of everything stored so far
        self.slots: dict[Slot, tuple[Tensor, Tensor]] = {}
        self.dtype = dtype

    def reserve(self, valid: Tensor | None, n_tokens: int, iterations: Iterations | None) -> None:
        """Check that a call with n_tokens columns fits behind what is stored, and mark which of them hold tokens.

        Args:
            valid: (B, T) bool, or None when no column is padding.
            n_tokens: T.
            iterations: depth of the call; keys of one depth cannot stand in for another's.
        """
        end = self.length + n_tokens
        if end > self.max_length:
            raise ValueError(
                f"the cache holds {self.max_length} positions and {end} are needed; "
                f"ask new_cache for max_length={end} or more"
            )
        if self.length and not same_depth(self.iterations, iterations):
            raise ValueError(
                f"the cache was filled at iterations={self.iterations} and cannot continue at {iterations}; "
                "use a new cache"
            )
        self.iterations = iterations
        self.valid[:, self.length : end] = True if valid is None else valid
        self.padded = self.padded or (valid is not None and not bool(valid.all()))

    def reserve_capacity(self, capacity: tuple[float, ...]) -> None:
        """Check that a call routes as the stored ones did: states of one capacity cannot stand in for another's."""
        if self.length and capacity != self.capacity:
            raise ValueError(
                f"the cache was filled at capacity={self.capacity} and cannot continue at {capacity}; use a new cache"
            )
        self.capacity = capacity

    def extend(self, slot: Slot, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B, K, T, W) behind the columns in use; return everything up to there, (B, K, length + T, W)."""
        if slot not in self.slots:
            empty = [torch.zeros(self.shape, dtype=self.dtype, device=keys.device) for _ in range(2)]
            self.slots[slot] = (empty[0], empty[1])
        end = self.length + keys.shape[2]
        for stored, new in zip(self.slots[slot], (keys, values), strict=True):
            stored[:, :, self.length : end] = new
        all_keys, all_values = self.slots[slot]
        return all_keys[:, :, :end], all_values[:, :, :end]

    def advance(self, n_tokens: int) -> None:
        """Take the columns of a finished call into use."""
        self.length += n_tokens

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values allocated so far."""
        return sum(tensor.nbytes for pair in self.slots.values() for tensor in pair)


def same_depth(one: Iterations | None, other: Iterations | None) -> bool:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)
    return one == other
