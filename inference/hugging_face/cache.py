"""mull's cache behind transformers' cache interface.

    cache = MullCache();  model(ids, cache=cache, iterations=8);  model(more, cache=cache, iterations=8)

transformers counts columns, padding included; mull's cache (models/cache.py) counts the tokens of each row and keeps no
padding. So this one knows both: `seen` columns, and what is `held`. It is opened by the first call, which knows how
many rows there are, and whether an exit rule asks for keys of different depths (policy deepest).
"""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
from torch import Tensor
from transformers import Cache as TransformersCache

from mull.models import LanguageModel
from mull.models.cache import Cache, Policy


class MullCache(TransformersCache):
    """See the head of this file.

    Attributes:
        held: mull's cache; None before the first call.
        seen: columns of the calls so far, padding included.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.held: Cache | None = None
        self.seen = 0

    def open(self, model: LanguageModel, batch_size: int, policy: Policy) -> Cache:
        """What is held, with room for so many rows of the model's own length; made at first."""
        if self.held is None:
            self.held = model.new_cache(batch_size, model.config.max_length, policy)
        elif policy == "deepest" and self.held.policy == "full":
            raise ValueError(
                "an exit rule needs a cache of policy deepest, and this one was filled without a rule: keys of one "
                "depth; use a new cache"
            )
        return self.held

    def fork(self, rows: list[int]) -> None:
        """Keep copies of these rows, in this order."""
        if self.held is not None and rows != list(range(self.held.batch_size)):
            self.held = self.held.fork(rows)

    # What transformers asks of a cache --------------------------------------------------------------------------------

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns, padding included."""
        return self.seen

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """Tokens of a row, padding not counted; -1 before the first call."""
        return -1 if self.held is None else self.held.max_length

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.seen + query_length, 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.fork(beam_idx.tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.fork([row for row in range(max(0, self.batch_size)) for _ in range(repeats)])

    def batch_select_indices(self, indices: Tensor) -> None:
        rows = torch.arange(max(0, self.batch_size), device=indices.device)
        self.fork(rows[indices].tolist())

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last columns of all rows, which are tokens: padding stands on the left. Their number is negative,
        as transformers has it."""
        if tokens_to_remove > 0:
            raise ValueError(f"crop takes the columns to remove as a negative number, not {tokens_to_remove}")
        if self.held is not None and tokens_to_remove:
            self.held.rollback([max(0, length + tokens_to_remove) for length in self.held.lengths])
            self.seen = max(0, self.seen + tokens_to_remove)

    def reset(self) -> None:
        self.held, self.seen = None, 0

    @property
    def batch_size(self) -> int:
        """Rows; -1 before the first call."""
        return -1 if self.held is None else self.held.batch_size

    @property
    def is_initialized(self) -> bool:
        return self.held is not None

    @property
    def is_sliding(self) -> list[bool]:
        return [False]

    @property
    def is_linear(self) -> list[bool]:
        return [False]  # and not none: all of none would be linear

    def __len__(self) -> int:
        return 0 if self.held is None else len(self.held.layers)

    def __repr__(self) -> str:
        return f"MullCache(rows={self.batch_size}, columns={self.seen})"

    def update(self, *args: Any, **kwargs: Any) -> Any:
        raise ValueError("a MullCache is filled by mull's models: pass it to one of them as cache=")

    def __deepcopy__(self, memo: Any) -> MullCache:
        new = copy(self)
        if self.held is not None:
            new.held = self.held.fork(list(range(self.held.batch_size)))
        return new


def check_cache(cache: Any) -> None:
    """Raise a ValueError for a cache that mull's models cannot fill."""
    if cache is not None and not isinstance(cache, MullCache):
        raise ValueError(f"cache must be a MullCache, not a {type(cache).__name__}; leave it out to get one")
