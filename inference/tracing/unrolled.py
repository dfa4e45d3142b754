"""The states after 1 .. R iterations, and how they move.

    s_r         what forward(iterations=r) returns as its state
    residual    |s_r - s_(r-1)| / |s_r|                    the size of a step; what the exit rule `latent` looks at
    cosine      cos(s_r - s_(r-1), s_(r-1) - s_(r-2))      near 1 on a straight way, negative where the state swings

A model with a core that is iterated gives all of them out of one run, changed on the way where that is asked. Where
every layer thinks for itself (inner thinking), s_r is the last layer's output of a run of its own with r passes.

Shapes: B batch, T positions, D model width, V vocabulary, R iterations.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mull.inference.tracing.interventions import Intervention, changed, intervened
from mull.models import IteratedModel, LanguageModel, ModelOutput
from mull.models.loop import iterate
from mull.models.output import Reading, relative_change


@dataclass(frozen=True)
class Unrolled:
    """A run, seen from outside.

    Attributes:
        states: (B, T, D) after each count that was to be kept, and the last one.
        residual, cosine: (B, R, T), NaN where there is no step before.
        read: gives the model's answer in a state, (B, T, D) -> (B, T, V).
        start: (B, T, D), the state before the first iteration; None where there is no such thing.
        selected, router_logits: of the run with R iterations, as `ModelOutput` has them; None without routers.
    """

    states: dict[int, Tensor]
    residual: Tensor
    cosine: Tensor
    read: Callable[[Tensor], Tensor]
    start: Tensor | None = None
    selected: Tensor | None = None
    router_logits: Tensor | None = None


class Motion:
    """Residuals and cosines of states as they come."""

    def __init__(self, start: Tensor | None) -> None:
        self.state: Tensor | None = start
        self.step: Tensor | None = None
        self.residuals: list[Tensor] = []
        self.cosines: list[Tensor] = []

    def add(self, state: Tensor) -> None:
        unknown = state.new_full(state.shape[:2], float("nan"), dtype=torch.float32)
        before, last = self.state, self.step
        step = None if before is None else (state - before).float()
        self.residuals.append(unknown if before is None else relative_change(state, before))
        self.cosines.append(unknown if step is None or last is None else F.cosine_similarity(step, last, dim=-1))
        self.state, self.step = state, step

    def stacked(self) -> tuple[Tensor, Tensor]:
        return torch.stack(self.residuals, dim=1), torch.stack(self.cosines, dim=1)


def unroll(
    model: IteratedModel,
    input_ids: Tensor,
    iterations: int,
    kept: Collection[int],
    changes: Sequence[Intervention] = (),
    attention_mask: Tensor | None = None,
    state: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Unrolled:
    """One run of a model with a core, with states kept after these counts and the last; see `IteratedModel.forward`
    for the arguments. Raises ValueError for a state beside a generator, or of the wrong shape, and for a change that
    cannot be made."""
    context = model.context(input_ids, attention_mask, None, iterations)
    injected = model.enter(input_ids, context)
    start = model.begin(injected, state, generator)
    for change in changes:
        change.check(injected.shape, iterations)
    first = changed(start, 0, changes)
    motion, states = Motion(first), dict[int, Tensor]()
    for count, now in iterate(intervened(model.thinker(injected, context), changes), first, iterations):
        motion.add(now)
        if count in kept or count == iterations:
            states[count] = now
    return Unrolled(states, *motion.stacked(), lambda x: model.read(x, context).logits, start)


def run_by_count(
    model: LanguageModel, input_ids: Tensor, iterations: int, kept: Collection[int], **options: Any
) -> Unrolled:
    """Runs with 1 .. R iterations of a model without a core of its own, such as inner thinking; the options are those
    of its sweep. The time is that of R (R + 1) / 2 iterations."""
    runs: Iterator[tuple[int | None, Reading]] = model.sweep(input_ids, range(1, iterations + 1), **options)
    motion, states = Motion(None), dict[int, Tensor]()
    for count, out in runs:
        assert isinstance(out, ModelOutput) and count is not None
        motion.add(out.state)
        if count in kept or count == iterations:
            states[count] = out.state
    assert isinstance(out, ModelOutput)
    return Unrolled(states, *motion.stacked(), model.logits, selected=out.selected, router_logits=out.router_logits)
