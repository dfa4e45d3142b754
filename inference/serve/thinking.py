"""One call of a batch, in steps: whoever runs it may do something else after every iteration.

    way of thinking   its rows have in common        rows may differ in
    ByCount           -                              iterations: a row that begins late is not computed before
    ByRule            exit rule and limit            -
    AtOnce            iterations and capacity        -                  (families without a core: one step)

All rows may hold texts of different lengths. What a row gets is what it would get alone: the arithmetic is that of
`mull.generate`, row by row; sums of matrix products may differ in their last bit, as those of any two batches.

Shapes: B rows, T tokens of each, D model width, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mull.inference.early_exit import step_by_step
from mull.inference.exits import Exit
from mull.models import IteratedModel, LanguageModel
from mull.models.cache import Cache, Policy
from mull.models.config import Capacity
from mull.models.output import relative_change


@dataclass(frozen=True)
class Said:
    """What a call says after the last token of each row.

    Attributes:
        logits: (B, V).
        used: iterations of the last token, by row.
        flops: what all tokens of a row cost, by row.
        residual: the most that the last iteration moved a state of these tokens, by row; None where nobody can say.
    """

    logits: Tensor
    used: list[int]
    flops: list[float]
    residual: list[float | None]


Steps = Generator[None, None, Said]


class Way(ABC):
    """How the rows of a lane think. See the head of this file."""

    policy: Policy = "full"

    @abstractmethod
    def call(self, model: Any, tokens: Tensor, cache: Cache, counts: Sequence[int]) -> Steps:
        """Read tokens (B, T) behind what the rows of the cache hold, with these iterations by row, largest first."""

    @property
    def in_pieces(self) -> bool:
        """Whether a prompt read piece by piece is the same to it as the whole."""
        return True


@dataclass(frozen=True)
class ByCount(Way):
    """Rows with counts of their own, the deepest first: all end together, so that of each iteration only the first
    rows have to be computed, those that have begun."""

    def call(self, model: IteratedModel, tokens: Tensor, cache: Cache, counts: Sequence[int]) -> Steps:
        depth = cache.depth if isinstance(cache.depth, Tensor) else counts[0]
        context = model.context(tokens, None, cache, depth)
        total, lengths = cache.iterations_of(depth), lengths_after(cache, tokens)
        cache.reserve(context.end + 1)
        injected = model.enter(tokens, context)
        prepared, state = model.prepare(injected), model.start(injected)
        begun, now, now_prepared, before = 0, context, prepared, state
        for index in range(total - counts[0], total):
            rows = sum(total - count <= index for count in counts)
            if rows != begun:
                whole = rows == len(counts)
                now = context if whole else context.first(rows)
                now_prepared, begun = prepared if whole else first(prepared, rows), rows
            before = state
            state = model.think(state[:rows], now_prepared, now, index)
            if rows < len(counts):
                state = torch.cat([state, before[rows:]])
            yield
        logits = model.read(state, context).logits[:, -1]
        context.commit(None)
        moved = relative_change(state, before).amax(dim=1).tolist()
        length = tokens.shape[1]
        return Said(
            logits=logits,
            used=list(counts),
            flops=[
                length * model.config.flops_per_token(count, end, one_by_one=length == 1)
                for count, end in zip(counts, lengths, strict=True)
            ],
            residual=[None if count == 1 else move for count, move in zip(counts, moved, strict=True)],
        )


@dataclass(frozen=True)
class ByRule(Way):
    """Rows under one exit rule, with one limit."""

    rule: Exit
    policy: Policy = field(default="deepest", init=False)

    def call(self, model: LanguageModel, tokens: Tensor, cache: Cache, counts: Sequence[int]) -> Steps:
        lengths = lengths_after(cache, tokens)
        out, residual = yield from step_by_step(model, tokens, counts[0], self.rule, None, cache)
        moved, fewest = residual.amax(dim=1).tolist(), out.iterations.amin(dim=1).tolist()
        known = [None if count == 1 else move for count, move in zip(fewest, moved, strict=True)]
        return Said(out.logits[:, -1], out.iterations[:, -1].tolist(), model.executed_flops(out, lengths), known)

    @property
    def in_pieces(self) -> bool:
        return not self.rule.reads_logits  # which looks at all positions of a prompt at the same count


@dataclass(frozen=True)
class AtOnce(Way):
    """Rows of a model without a core, with one count, or none where there is no loop, and one capacity."""

    iterations: int | None
    capacity: Capacity | None

    def call(self, model: LanguageModel, tokens: Tensor, cache: Cache, counts: Sequence[int]) -> Steps:
        lengths = lengths_after(cache, tokens)
        options: Any = {} if self.capacity is None else {"capacity": self.capacity}
        out = model(tokens, self.iterations, cache=cache, **options)
        yield
        flops, used = model.executed_flops(out, lengths), out.iterations[:, -1].tolist()
        return Said(out.logits[:, -1], used, flops, [None] * len(counts))


def lengths_after(cache: Cache, tokens: Tensor) -> list[int]:
    """What each row will hold with these tokens."""
    return [length + tokens.shape[1] for length in cache.lengths]


def first(prepared: Any, rows: int) -> Any:
    """Of what all iterations need, (B, T, ...), the part of the first rows; what is (1, 1, ...) is for all."""
    if isinstance(prepared, tuple):
        return tuple(first(part, rows) for part in prepared)
    return prepared if prepared is None or prepared.shape[:2] == (1, 1) else prepared[:rows]
