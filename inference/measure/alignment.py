"""Alignment: whether two random starts come to one state, by iterations and difficulty.

    s_0, s_0' ~ start(generator);     alignment = mean over scored positions of cos(s_R, s_R')

A model whose state is a function of the problem alone, wherever it began, is one that goes on well beyond what it was
trained on, in iterations and in difficulty (Anil et al., "Path independent equilibrium models can better exploit
test-time computation", 2022, whose second start is the end state of another problem; ours is a second draw). Near 1 it
has forgotten where it began. That is no measure of right answers: a state may come to rest at a wrong one.

Shapes: B batch, T positions, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from mull.inference.measure.evaluate import Batches
from mull.inference.measure.intervals import clustered_mean
from mull.inference.measure.results import Result
from mull.inference.mode import evaluating
from mull.models import LanguageModel
from mull.models.iterated import IteratedModel
from mull.models.labels import scored
from mull.models.precision import wide


def check_aligning(model: LanguageModel) -> IteratedModel:
    """The model. Raises ValueError where it has no loop, or begins at one state always."""
    if not isinstance(model, IteratedModel) or not model.starts_at_random:
        raise ValueError(
            "--alignment compares two random starts, and this model has none: train one with initial_state normal, or "
            "leave it out"
        )
    return model


@evaluating
@torch.inference_mode()
def aligned(
    model: LanguageModel, results: Sequence[Result], batches: Batches, generator: torch.Generator | None = None
) -> list[Result]:
    """The results with the alignment at their counts, and its 95 % interval, examples being independent.

    Args:
        model: begins at random states; left in the mode it is in.
        results: of `evaluate`, of which counts and difficulties are taken.
        batches: those that were evaluated.
        generator: draws the starts, batch by batch, for each difficulty from where it stands; None is one of seed 0.

    Raises:
        ValueError: the model has no random starts.
    """
    iterated = check_aligning(model)
    draws = torch.Generator(model.device).manual_seed(0) if generator is None else generator
    counts = sorted({result.iterations for result in results if result.iterations is not None})
    told: dict[tuple[int | None, int | None], tuple[float, float | None, float | None]] = {}
    begun = draws.get_state()
    for difficulty, pairs in batches.items():
        draws.set_state(begun)  # so that no difficulty depends on those before it
        sums: dict[int, list[float]] = {count: [] for count in counts}
        sizes: list[int] = []
        for input_ids, labels in pairs:
            counted = scored(labels).to(model.device)
            kept = counted.any(dim=1)
            sizes += counted[kept].sum(dim=1).tolist()
            for count, cosine in cosines(iterated, input_ids.to(model.device), counts, draws):
                sums[count] += (cosine * counted)[kept].sum(dim=1).tolist()
        for count in counts:
            low, high = clustered_mean(sums[count], sizes) or (None, None)
            told[difficulty, count] = sum(sums[count]) / sum(sizes), low, None if high is None else min(1.0, high)
    return [
        replace(result, alignment=mean, alignment_low=low, alignment_high=high)
        for result in results
        for mean, low, high in [told[result.difficulty, result.iterations]]
    ]


def cosines(
    model: IteratedModel, input_ids: Tensor, counts: Sequence[int], generator: torch.Generator
) -> list[tuple[int, Tensor]]:
    """By count, the cosine of the states that two random starts of each row have come to, (B, T), out of one unroll."""
    twice, found = input_ids.repeat(2, 1), []
    for count, state in model.unroll(twice, max(counts), model.context(twice), generator=generator):
        if count in counts:
            one, other = wide(state).chunk(2)
            found.append((count, F.cosine_similarity(one, other, dim=-1)))
    return found
