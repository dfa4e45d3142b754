"""Session: rows of text being written, with the model, the cache of what they hold, and how long to think.

    session = Session(model, batch_size=2, max_length=128, iterations=8)
    answer = session.read(prompt_ids)              # (2, P): logits (2, V) for the token after each prompt
    answer = session.read(tokens[:, None])         # (2, 1): one more token of each row
    more = session.fork([0, 0, 1])                 # rows of their own: samples, beams, rows that go on
    more.cut([5, 7, 6])                            # forget what stands behind these lengths

Nothing is read twice: what a fork or a cut keeps is in the cache. Every way of writing is these three.

Shapes: B rows, T tokens of a row in this call, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from operator import index
from typing import Any, NamedTuple, TypedDict, Unpack

import torch
from torch import Tensor

from mull.inference.checks import routing_options
from mull.inference.early_exit import choose_exit, run_until
from mull.inference.exits import Exit
from mull.inference.mode import in_eval
from mull.models import IteratedModel, LanguageModel, ModelOutput
from mull.models.cache import Cache, Policy
from mull.models.config import Capacity
from mull.models.loop import Iterations, deepest
from mull.models.selection import check_capacity, first_passes


class Answer(NamedTuple):
    """What a session says after the last token of each row: `logits` (B, V) for the next one, `iterations` (B,) spent
    on it, and the `state` (B, D) that they came to."""

    logits: Tensor
    iterations: Tensor
    state: Tensor


class SessionOptions(TypedDict, total=False):
    """What may be said of a session beside how long it thinks.

    warm_start (False): begin each new position from the state of the one before instead of the model's own start. This
        changes what is written, unless the loop comes to rest in the same place from anywhere.
    policy, ring (1): of the cache (models/cache.py); None is `full`, or `deepest` with an exit rule.
    cache_dtype: of keys and values; None is the model's. bfloat16 under fp32 halves what long contexts cost, and may
        change what is written.
    capacity: share of the positions that a routed pass takes, one for all or one for each; None is the config's.
    residuals (False): keep how far the last iteration moved the states, for `Session.residual` and what is written.
    """

    warm_start: bool
    policy: Policy | None
    ring: int
    cache_dtype: torch.dtype | None
    capacity: Capacity | None
    residuals: bool


class Session:
    """See the head of this file.

    Args:
        model: any family; left in the mode it is in.
        batch_size: rows.
        max_length: most tokens of a row, padding not counted.
        iterations: of every position, or the most under an exit rule; one, or (B,) by row; None is the config's count.
        exit: a rule that ends thinking early, `latent:0.03` or an object of exits.py.
        options: see `SessionOptions`.

    Raises:
        ValueError: an option that the model cannot follow.
    """

    def __init__(
        self,
        model: LanguageModel,
        batch_size: int,
        max_length: int,
        iterations: Iterations | None = None,
        exit: str | Exit | None = None,
        **options: Unpack[SessionOptions],
    ) -> None:
        unknown = sorted(options.keys() - SessionOptions.__annotations__.keys())
        if unknown:
            raise TypeError(f"{unknown[0]!r} is no option; there are {', '.join(SessionOptions.__annotations__)}")
        self.warm_start = options.get("warm_start", False)
        if self.warm_start and not isinstance(model, IteratedModel):
            raise ValueError(f"warm_start needs a model with a core that is iterated, not a {type(model).__name__}")
        self.model, self.exit = model, choose_exit(model, exit)
        policy = options.get("policy") or ("full" if self.exit is None else "deepest")
        if self.exit is not None and policy == "full":
            raise ValueError("an exit rule needs a cache of policy deepest or shared, not full: keys of one depth")
        self.cache = model.new_cache(batch_size, max_length, policy, options.get("ring", 1), options.get("cache_dtype"))
        self.iterations = model.check_depth(iterations, self.batch_size)
        self.routing = routing_options(model, capacity=options.get("capacity"))
        if self.routing:
            check_capacity(self.routing["capacity"], deepest(self.iterations) - 1)
        self.state: Tensor | None = None  # (B, D), of each row's last position; None before the first
        # (B,), the most that the last iteration moved a state that the row holds, |s_R - s_{R-1}| / |s_R|: a position
        # that waits for others rests while they move. NaN where nobody knows; None where nobody asked, or of none
        self.residual: Tensor | None = None
        self.residuals = options.get("residuals", False)

    @property
    def batch_size(self) -> int:
        return self.cache.batch_size

    @property
    def lengths(self) -> list[int]:
        """Tokens that each row holds."""
        return self.cache.lengths

    @property
    def room(self) -> int:
        """Tokens for which the longest row has room."""
        return self.cache.max_length - self.cache.length

    @property
    def last_residuals(self) -> Tensor | None:
        """`residual` as that of one token of each row, (B, 1)."""
        return None if self.residual is None else self.residual[:, None]

    @torch.inference_mode()
    def read(self, tokens: Tensor, mask: Tensor | None = None) -> Answer:
        """Read tokens (B, T) behind what the rows hold. mask: (B, T), 0 at padding, on either side; every row needs a
        token. Raises ValueError for a row without one, and where there is no room."""
        check_rows(mask)
        out, _ = self.thought(tokens, mask)
        last = last_of(mask)
        return Answer(out.logits[last], out.iterations[last], out.state[last])

    @torch.inference_mode()
    def think(self, tokens: Tensor, mask: Tensor | None = None) -> ModelOutput:
        """The model's answers at all of these tokens. A row may have no token, unless the session starts warm: then a
        ValueError names it."""
        return self.thought(tokens, mask)[0]

    def thought(self, tokens: Tensor, mask: Tensor | None) -> tuple[ModelOutput, Tensor | None]:
        """The model's answers, and how far the last iteration moved the states, (B, T), where that is asked for: NaN
        where it was the only one, 0 at padding."""
        start = None
        moved: Tensor | None
        if self.warm_start:
            check_rows(mask)
            start = None if self.state is None else self.state[:, None].expand(-1, tokens.shape[1], -1)
        if self.exit is not None:
            out, moved = run_until(self.model, tokens, self.iterations, self.exit, mask, self.cache, start)
        else:
            options: dict[str, Any] = self.routing if start is None else {"state": start}
            with in_eval(self.model):
                out = self.model(tokens, self.iterations, attention_mask=mask, cache=self.cache, **options)
            moved = out.residual if self.residuals else None
        if self.warm_start:
            self.state = out.state[last_of(mask)]
        if not self.residuals or moved is None:
            return out, None
        known = moved.masked_fill(out.iterations == 1, torch.nan)  # which has no iteration before it
        if mask is not None:
            known = known.masked_fill(~mask.bool().to(moved.device), 0)  # padding moves nothing that is read
        self.residual = self.so_far(known)[:, -1]
        return out, known

    def so_far(self, moved: Tensor) -> Tensor:
        """The largest of `moved`, (B, T), at each position or before it, what the rows hold already included."""
        largest = moved.cummax(dim=1).values
        return largest if self.residual is None else torch.maximum(largest, self.residual[:, None])

    def fork(self, rows: Sequence[int] | Tensor) -> Session:
        """A session of its own with copies of these rows, in this order; a row may be named more than once. Raises
        ValueError for rows that are not there."""
        if isinstance(rows, Tensor) and rows.dtype == torch.bool:
            raise ValueError("fork takes the numbers of rows, not a mask; give mask.nonzero().flatten()")
        chosen = [index(row) for row in (rows.tolist() if isinstance(rows, Tensor) else rows)]
        if not chosen:
            raise ValueError("fork got no row; give at least one")
        outside = [row for row in chosen if not 0 <= row < self.batch_size]
        if outside:
            raise ValueError(f"there is no row {outside[0]}: the session has {self.batch_size} rows, counted from 0")
        new = copy(self)
        new.cache = self.cache.fork(chosen)
        there = torch.tensor(chosen, device=self.model.device)
        if self.state is not None:
            new.state = self.state[there]
        if self.residual is not None:
            new.residual = self.residual[there]
        if isinstance(self.iterations, Tensor):
            new.iterations = self.iterations[there]
        return new

    @staticmethod
    def gathered(rows: Sequence[tuple[Session, int]]) -> Session:
        """A session of its own with copies of rows of several sessions, (session, row) each, in this order; a row may
        be named more than once. They must hold something. Rows with counts of their own keep them. Raises ValueError
        where they differ in model, in a count for all rows or in exit rule, where they start warm, and where their
        caches cannot be joined (models/cache.py)."""
        first, by_row = rows[0][0], object()
        ways = {
            (id(each.model), by_row if isinstance(each.iterations, Tensor) else each.iterations, each.exit)
            for each, _ in rows
        }
        if len(ways) > 1:
            raise ValueError("rows of sessions that differ in model, depth or exit rule cannot be joined")
        if any(session.warm_start for session, _ in rows):
            raise ValueError("rows of sessions with warm_start cannot be joined")
        if all(session is first for session, _ in rows):
            return first.fork([row for _, row in rows])
        new = copy(first)
        new.cache = Cache.gathered([(session.cache, row) for session, row in rows])
        new.state = None  # of a warm start only
        if isinstance(first.iterations, Tensor):
            new.iterations = torch.stack([each.iterations[row] for each, row in rows])
        new.residuals = any(each.residuals for each, _ in rows)
        moved = [None if each.residual is None else each.residual[row] for each, row in rows]
        known = [each for each in moved if each is not None]
        new.residual = None
        if known:
            unknown = torch.full_like(known[0], torch.nan)
            new.residual = torch.stack([unknown if each is None else each for each in moved])
        return new

    def cut(self, lengths: Sequence[int]) -> None:
        """Forget the tokens of each row from `lengths` (B,) on. Raises ValueError where a row holds fewer, and where
        the session starts warm, from states that would have to be forgotten too."""
        kept = [index(length) for length in lengths]
        if len(kept) != self.batch_size:
            raise ValueError(f"cut got {len(kept)} lengths for {self.batch_size} rows; give one for each row")
        if kept == self.lengths:
            return
        if self.warm_start:
            raise ValueError("a session with warm_start cannot be cut: the states before its last are not kept")
        held = self.lengths
        self.cache.rollback(kept)
        if self.residual is not None:  # what is left of a row may have moved less, and nothing has not moved
            rows = zip(kept, held, self.residual.tolist(), strict=True)
            left = [moved if length == before else torch.nan if length else 0 for length, before, moved in rows]
            self.residual = self.residual.new_tensor(left) if any(kept) else None
        if self.routing and not any(kept):  # the cache has forgotten the passes of rows that are left behind, too
            self.routing = {"capacity": first_passes(self.routing["capacity"], deepest(self.iterations))}


def check_rows(mask: Tensor | None) -> None:
    """Raise a ValueError for the first row without a token."""
    empty = [] if mask is None else (~mask.bool().any(dim=1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"row {empty[0]} is empty: the mask hides all of its tokens; fork the other rows")


def last_of(mask: Tensor | None) -> Any:
    """Where the last token of each row stands in (B, T, ...), as an index; mask: that of `Session.read`."""
    if mask is None:
        return (slice(None), -1)
    places = torch.where(mask.bool(), torch.arange(mask.shape[1], device=mask.device), -1)
    return (torch.arange(len(mask), device=mask.device), places.amax(dim=1))
