"""Accuracy by iterations and difficulty, every count read out of one unroll.

    for count, state in unroll:  if count is asked for: score(read(state))

An answer at 1, 2, 4, ... R costs the run at R plus one coda and head a count. Each reading is reduced to three sums per
example before the next one is made, so memory does not grow with the number of counts.

Shapes: B batch (examples), T positions, V vocabulary.
"""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mull.inference.checks import routing_options
from mull.inference.early_exit import choose_exit, think_until
from mull.inference.exits import Exit
from mull.inference.measure.intervals import clustered_mean, clustered_share, wilson
from mull.inference.measure.results import Result
from mull.models import LanguageModel, ModelOutput
from mull.models.config import Capacity
from mull.models.loop import check_iterations
from mull.models.selection import Selection

IGNORE = -100  # label of a position that is not scored; the default ignore_index of torch's cross entropy

Batches = Mapping[int | None, Iterable[tuple[Tensor, Tensor]]]


@dataclass
class Tally:
    """Sums over the examples seen so far at one count; the lists have one entry per example."""

    scored: list[int] = field(default_factory=list)  # scored tokens
    correct: list[int] = field(default_factory=list)  # of these, right ones
    nats: list[float] = field(default_factory=list)  # summed loss
    positions: int = 0  # all positions, scored or not
    flops: float = 0.0
    used: int = 0  # iterations of all positions, with an exit rule
    taken: float = 0.0  # positions that took a routed pass, on average over the passes
    seconds: float = 0.0


def evaluate(
    model: LanguageModel,
    batches: Batches,
    iterations: Sequence[int] | None = None,
    *,
    bytes_per_token: float | None = None,
    capacity: Capacity | None = None,
    selection: Selection | None = None,
    exit: str | Exit | None = None,
) -> list[Result]:
    """Score a model at several iteration counts, one sweep per batch.

    Args:
        model: any family; left in the mode it is in.
        batches: for every difficulty (None where there is none) the batches (input_ids, labels), each (B, T) int64;
            labels[:, t] is the token to predict at position t, or -100 where nothing is scored. Padding on the right
            needs no mask: nothing attends to what follows it.
        iterations: the counts; None is the count of the config (a Transformer has no loop and takes nothing but None).
        bytes_per_token: mean bytes of a scored token; says that this is text: bits per byte are reported, and exact
            match is not.
        capacity, selection: of a model with routed passes; see `InnerThinkingTransformer.forward`.
        exit: a rule that ends thinking early (exits.py); the counts are then the most that a position gets, and each is
            a run of its own.

    Returns:
        A result per difficulty, in the order of `batches`, and count, ascending. Examples without a scored token are
        left out, so a result does not depend on how examples are batched.

    Raises:
        ValueError: a bad count, batch or bytes_per_token, or a difficulty without any scored token.
    """
    if bytes_per_token is not None and not bytes_per_token > 0:
        raise ValueError(f"bytes_per_token must be more than 0, not {bytes_per_token}")
    counts = check_counts(model, iterations)
    options = routing_options(model, capacity=capacity, selection=selection)
    rule = choose_exit(model, exit)
    results = []
    for difficulty, pairs in batches.items():
        tallies = {count: Tally() for count in counts}
        for input_ids, labels in pairs:
            check_batch(model, input_ids, labels)
            sweep(model, input_ids.to(model.device), labels.to(model.device), tallies, options, rule)
        if not tallies[counts[0]].scored:
            where = "the batches have" if difficulty is None else f"difficulty {difficulty} has"
            raise ValueError(f"{where} no scored token: give examples with labels other than {IGNORE}")
        routed = model.config.default_capacity is not None
        results += [make_result(count, difficulty, tallies[count], bytes_per_token, routed) for count in counts]
    return results


@torch.inference_mode()
def sweep(
    model: LanguageModel,
    input_ids: Tensor,
    labels: Tensor,
    tallies: Mapping[int | None, Tally],
    options: Mapping[str, Any],
    exit: Exit | None = None,
) -> None:
    """Add one batch (B, T) to the tallies of all counts, from one unroll; with an exit rule, from a run for each."""
    start = time.perf_counter()
    scored = (labels != IGNORE).sum(dim=1).tolist()
    answers = model.sweep(input_ids, list(tallies), **options)
    if exit is not None:
        answers = ((count, think_until(model, input_ids, count, exit)) for count in tallies)
    for count, reading in answers:
        correct, nats = score(reading.logits, labels)  # on the CPU: the device has finished when the clock is read
        tally = tallies[count]
        tally.seconds += time.perf_counter() - start
        for i in (i for i, n in enumerate(scored) if n):
            tally.scored.append(scored[i])
            tally.correct.append(int(correct[i]))
            tally.nats.append(float(nats[i]))
        tally.positions += input_ids.numel()
        flops = model.config.flops_per_token(count, input_ids.shape[1])
        if isinstance(reading, ModelOutput):  # which says what each position used
            flops = model.executed_flops_per_token(reading)
            if exit is not None:
                tally.used += int(reading.iterations.sum())
            if reading.selected is not None and reading.selected.numel():  # (B, T, layers, passes)
                tally.taken += input_ids.numel() * float(reading.selected.double().mean(dim=(0, 1)).mean())
        tally.flops += input_ids.numel() * flops


def score(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Right tokens and summed loss in nats of each example, (B,) fp64 each, on the CPU.

    A position whose logits are NaN is never right, whatever argmax makes of it.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    nats = F.cross_entropy(wide.flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="none")
    nats = nats.view(labels.shape).double()
    right = (logits.argmax(dim=-1) == labels) & ~nats.isnan()
    sums = torch.stack([right.sum(dim=1).double(), nats.sum(dim=1)]).cpu()
    return sums[0], sums[1]


def make_result(
    count: int | None, difficulty: int | None, tally: Tally, bytes_per_token: float | None, routed: bool = False
) -> Result:
    """The result of a finished tally."""
    n, tokens = len(tally.scored), sum(tally.scored)
    loss = sum(tally.nats) / tokens
    exact = sum(right == scored for right, scored in zip(tally.correct, tally.scored, strict=True))
    accuracy_interval = clustered_share(tally.correct, tally.scored)
    exact_interval = wilson(exact, n) if bytes_per_token is None else None
    loss_interval = clustered_mean(tally.nats, tally.scored)
    return Result(
        iterations=count,
        difficulty=difficulty,
        accuracy=sum(tally.correct) / tokens,
        accuracy_low=accuracy_interval.low,
        accuracy_high=accuracy_interval.high,
        exact_match=exact / n if exact_interval else None,
        exact_match_low=exact_interval.low if exact_interval else None,
        exact_match_high=exact_interval.high if exact_interval else None,
        loss=loss,
        loss_low=loss_interval.low if loss_interval else None,
        loss_high=loss_interval.high if loss_interval else None,
        bits_per_byte=loss / math.log(2) / bytes_per_token if bytes_per_token is not None else None,
        examples=n,
        flops_per_token=tally.flops / tally.positions,
        seconds=tally.seconds,
        capacity=tally.taken / tally.positions if routed and count != 1 else None,
        mean_iterations=tally.used / tally.positions if tally.used else None,
    )


def check_counts(model: LanguageModel, iterations: Sequence[int] | None) -> list[int | None]:
    """The counts to read out, ascending and each once; [None] for a model without a loop."""
    if model.config.default_iterations is None:
        if iterations is not None:
            raise ValueError(f"a {type(model).__name__} has no loop: iterations={iterations} is refused, leave it out")
        return [None]
    if iterations is None:
        return [model.config.default_iterations]
    if len(iterations) == 0:
        raise ValueError("iterations is empty; give at least one count")
    for count in iterations:
        check_iterations(count, batch_size=1)
    return list[int | None](sorted(set(iterations)))


def check_batch(model: LanguageModel, input_ids: Tensor, labels: Tensor) -> None:
    """Raise a ValueError for a batch whose shapes differ or whose ids the model does not know."""
    if input_ids.dim() != 2 or input_ids.shape != labels.shape:
        raise ValueError(
            f"input_ids {tuple(input_ids.shape)} and labels {tuple(labels.shape)} must have one shape "
            "(examples, positions)"
        )
    vocab_size = model.config.vocab_size
    for name, ids in (("input_ids", input_ids), ("labels", labels[labels != IGNORE])):
        outside = ids[(ids < 0) | (ids >= vocab_size)]
        if outside.numel():
            raise ValueError(f"{name} has token {int(outside[0])}, outside the model's vocabulary of {vocab_size}")
