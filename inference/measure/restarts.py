"""Restarts: solve from N random initial states, and keep one answer.

    s_0^(n) ~ start(generator),  n = 1 .. N;     r_n = max_t |s_R^(n) - s_{R-1}^(n)| / |s_R^(n)|     (settling.py)
    calmest     n* = argmin_n r_n                                                the run that moved least in the end
    majority    n* = argmin_n r_n among the runs whose answer most runs gave     an answer is that to the whole row;
                     two that agree beat any that do not, and where all differ it is the calmest

A state that has settled is more often right than one that still moves (settling.py), so N short runs buy what a longer
one may not: another start. It costs N runs. The calmest is chosen by residuals and never by an answer (best of N of
arXiv 2605.19943, with the residual in place of a trained head); the majority is self-consistency (arXiv 2203.11171)
over starts in place of samples. A run that has left the numbers is never chosen, and has no vote.

Shapes: B batch, N runs, T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from mull.checkpoints.files import shown
from mull.models import LanguageModel, Reading
from mull.models.iterated import IteratedModel
from mull.models.labels import depended_on

Choose = Literal["calmest", "majority"]
AT_ONCE = 4096  # runs; those of further rows come after them


def check_restarts(model: LanguageModel, restarts: int, choose: Choose = "calmest") -> IteratedModel | None:
    """The model if it is to be restarted, None for one run. Raises ValueError for a number below 1 or above AT_ONCE, an
    unknown choice or one of a single run, and a model whose initial state is no draw: all of its runs would be one."""
    if choose not in get_args(Choose):
        raise ValueError(f"choose must be one of {', '.join(get_args(Choose))}, not {shown(choose)}")
    if not 1 <= restarts <= AT_ONCE:
        raise ValueError(f"restarts must lie between 1 and {AT_ONCE:,}, not {restarts}")
    if restarts == 1 and choose != "calmest":
        raise ValueError(f"choose={choose} chooses among starts, and there is one: give more restarts, or leave it out")
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
    choose: Choose = "calmest",
) -> Iterator[tuple[int | None, Reading]]:
    """The answers of `sweep` at each count, each row that of its chosen run.

    Args:
        model: begins at random states.
        input_ids: (B, T).
        counts: ascending.
        restarts: N, runs of each row.
        generator: draws the initial states.
        asked: (B, T) bool, the positions whose answers are wanted: these and the residuals of what they depend on
            count, and nothing else.
        choose: see the head of this file. After one iteration there are no residuals: the first run is the calmest.
    """
    rows = max(1, AT_ONCE // restarts)
    if len(input_ids) <= rows:
        yield from at_once(model, input_ids, counts, restarts, generator, asked, choose)
        return
    parts = zip(input_ids.split(rows), asked.split(rows), strict=True)
    found = [list(at_once(model, part, counts, restarts, generator, theirs, choose)) for part, theirs in parts]
    for at_count in zip(*found, strict=True):
        count, readings = at_count[0][0], [reading for _, reading in at_count]
        states = [reading.last_two for reading in readings if reading.last_two is not None]
        logits = torch.cat([reading.logits for reading in readings])
        if not states:
            yield count, Reading(logits=logits)
            continue
        last, before = (torch.cat(each) for each in zip(*states, strict=True))
        yield count, Reading(logits=logits, last_two=(last, before))


def at_once(
    model: IteratedModel,
    input_ids: Tensor,
    counts: Sequence[int | None],
    restarts: int,
    generator: torch.Generator,
    asked: Tensor,
    choose: Choose,
) -> Iterator[tuple[int | None, Reading]]:
    """`restarted`, with all runs at once."""
    first = torch.arange(len(input_ids), device=input_ids.device) * restarts
    moot = ~asked.repeat_interleave(restarts, dim=0)
    idle = ~depended_on(~moot, model.config.causal)
    for count, reading in model.sweep(input_ids.repeat_interleave(restarts, dim=0), counts, generator=generator):
        residual = reading.residual if reading.last_two is not None else torch.zeros_like(moot, dtype=torch.float32)
        assert residual is not None
        most = torch.finfo(residual.dtype).max
        moved = residual.masked_fill(idle, 0).amax(dim=1).view(-1, restarts).clamp(max=most)
        lost = reading.logits.isnan().any(dim=-1).masked_fill(moot, False).any(dim=1).view(-1, restarts)
        votes = (~(lost | moved.isnan())).long()
        if choose == "majority":
            answers = reading.logits.argmax(dim=-1).masked_fill(moot, 0)
            votes *= alike(answers.view(-1, restarts, answers.shape[1]), votes)
        rows = first + moved.masked_fill(votes < votes.amax(dim=1, keepdim=True), torch.inf).argmin(dim=1)
        logits = reading.logits[rows]
        if reading.last_two is None:
            yield count, Reading(logits=logits)
        else:
            last, before = reading.last_two
            yield count, Reading(logits=logits, last_two=(last[rows], before[rows]))


def alike(answers: Tensor, counted: Tensor) -> Tensor:
    """How many counted runs gave the answer of each run: (B, N, T) token ids and (B, N) 0 or 1 -> (B, N) int64."""
    found = torch.zeros_like(counted)
    for row, theirs in enumerate(answers):
        _, which = theirs.unique(dim=0, return_inverse=True)
        found[row] = torch.zeros_like(counted[row]).scatter_add_(0, which, counted[row])[which]
    return found
