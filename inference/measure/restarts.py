"""Restarts: solve from N random initial states, and keep the answer of the run that moved least in the end.

    s_0^(n) ~ start(generator),  n = 1 .. N;     n* = argmin_n max_t |s_R^(n) - s_{R-1}^(n)| / |s_R^(n)|

A state that has settled is more often right than one that still moves (settling.py), so N short runs buy what a longer
one may not: another start. It costs N runs. The choice looks at residuals and never at an answer (best of N of
arXiv 2605.19943, with the residual in place of a trained head).

Shapes: B batch, T positions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mull.models import LanguageModel, Reading
from mull.models.iterated import IteratedModel

AT_ONCE = 4096  # runs; those of further rows come after them


def check_restarts(model: LanguageModel, restarts: int) -> IteratedModel | None:
    """The model if it is to be restarted, None for one run. Raises ValueError for a number below 1 or above AT_ONCE,
    and for a model whose initial state is no draw: all of its runs would be one."""
    if not 1 <= restarts <= AT_ONCE:
        raise ValueError(f"restarts must lie between 1 and {AT_ONCE:,}, not {restarts}")
    if restarts == 1:
        return None
    if not isinstance(model, IteratedModel) or not model.starts_at_random:
        raise ValueError(
            f"restarts={restarts} needs a model that begins at a random state: train one with initial_state normal, "
            "or leave restarts out"
        )
    return model


def restarted(
    model: IteratedModel,
    input_ids: Tensor,
    counts: Sequence[int | None],
    restarts: int,
    generator: torch.Generator,
    asked: Tensor,
) -> Iterator[tuple[int | None, Reading]]:
    """The answers of `sweep` at each count, each row that of its calmest run.

    Args:
        model: begins at random states.
        input_ids: (B, T).
        counts: ascending.
        restarts: N, runs of each row.
        generator: draws the initial states.
        asked: (B, T) bool, the positions whose answers are wanted: only their residuals count.
    """
    rows = max(1, AT_ONCE // restarts)
    if len(input_ids) <= rows:
        yield from calmest(model, input_ids, counts, restarts, generator, asked)
        return
    parts = zip(input_ids.split(rows), asked.split(rows), strict=True)
    found = [list(calmest(model, part, counts, restarts, generator, theirs)) for part, theirs in parts]
    for at_count in zip(*found, strict=True):
        count, readings = at_count[0][0], [reading for _, reading in at_count]
        states = [reading.last_two for reading in readings if reading.last_two is not None]
        logits = torch.cat([reading.logits for reading in readings])
        if not states:
            yield count, Reading(logits=logits)
            continue
        last, before = (torch.cat(each) for each in zip(*states, strict=True))
        yield count, Reading(logits=logits, last_two=(last, before))


def calmest(
    model: IteratedModel,
    input_ids: Tensor,
    counts: Sequence[int | None],
    restarts: int,
    generator: torch.Generator,
    asked: Tensor,
) -> Iterator[tuple[int | None, Reading]]:
    """`restarted`, with all runs at once."""
    first = torch.arange(len(input_ids), device=input_ids.device) * restarts
    moot = ~asked.repeat_interleave(restarts, dim=0)
    for count, reading in model.sweep(input_ids.repeat_interleave(restarts, dim=0), counts, generator=generator):
        if reading.last_two is None:  # after one iteration there is nothing to choose by
            yield count, Reading(logits=reading.logits[first])
            continue
        assert reading.residual is not None
        worst = reading.residual.masked_fill(moot, 0).amax(dim=1).view(-1, restarts)
        rows = first + worst.nan_to_num(nan=math.inf).argmin(dim=1)  # a run that has left the numbers is not calm
        state, previous = reading.last_two
        yield count, Reading(logits=reading.logits[rows], last_two=(state[rows], previous[rows]))
