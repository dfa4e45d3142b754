"""Accuracy by iterations and difficulty, every count read out of one unroll.

    for count, state in unroll:  if count is asked for: score(read(state))

An answer at 1, 2, 4, ... R costs the run at R plus one coda and head a count. Each reading is reduced to three sums per
example before the next one is made, so memory does not grow with the number of counts. Every count reads the same
examples, so differences between counts are taken example by example.

Shapes: B batch (examples), T positions, V vocabulary.
"""

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from mull.inference.checks import check_known, routing_options
from mull.inference.early_exit import choose_exit, think_until
from mull.inference.exits import Exit
from mull.inference.measure.intervals import clustered_mean, clustered_share, paired_share, wilson
from mull.inference.measure.restarts import Choose, check_restarts, restarted
from mull.inference.measure.results import Result
from mull.inference.measure.settling import settling
from mull.inference.mode import evaluating
from mull.models import LanguageModel, ModelOutput, Reading
from mull.models.config import Capacity
from mull.models.labels import IGNORE, depended_on, scored, token_losses
from mull.models.selection import Selection, check_capacity, first_passes

Batches = Mapping[int | None, Iterable[tuple[Tensor, Tensor]]]


@dataclass
class Tally:
    """Sums over the examples seen so far at one count; the lists have one entry per example."""

    scored: list[int] = field(default_factory=list)  # scored tokens
    correct: list[int] = field(default_factory=list)  # of these, right ones
    nats: list[float] = field(default_factory=list)  # summed loss
    residuals: list[float] = field(default_factory=list)  # the largest that its answer depends on, where there is one
    positions: int = 0  # all positions, scored or not
    flops: float = 0.0
    used: int = 0  # iterations of all positions, with an exit rule
    taken: list[float] = field(default_factory=list)  # positions that took each routed pass, on average over layers
    seconds: float = 0.0

    @property
    def right(self) -> list[bool]:
        """Whether each example is right throughout."""
        return [correct == scored for correct, scored in zip(self.correct, self.scored, strict=True)]

    def result(
        self,
        count: int | None,
        difficulty: int | None,
        bytes_per_token: float | None,
        asked: tuple[float, ...] | None = None,
    ) -> Result:
        """What the sums say, at this count and difficulty; `asked` is the capacity of each routed pass."""
        met = tuple(taken / self.positions for taken in self.taken)
        n, tokens = len(self.scored), sum(self.scored)
        loss = sum(self.nats) / tokens
        exact = sum(self.right)
        accuracy_low, accuracy_high = clustered_share(self.correct, self.scored)
        exact_low, exact_high = wilson(exact, n) if bytes_per_token is None else (None, None)
        loss_low, loss_high = clustered_mean(self.nats, self.scored) or (None, None)
        told = settling(self.residuals, None if bytes_per_token else self.right) if self.residuals else None
        return Result(
            iterations=count,
            difficulty=difficulty,
            accuracy=sum(self.correct) / tokens,
            accuracy_low=accuracy_low,
            accuracy_high=accuracy_high,
            exact_match=exact / n if bytes_per_token is None else None,
            exact_match_low=exact_low,
            exact_match_high=exact_high,
            loss=loss,
            loss_low=loss_low,
            loss_high=loss_high,
            bits_per_byte=loss / math.log(2) / bytes_per_token if bytes_per_token is not None else None,
            examples=n,
            flops_per_token=self.flops / self.positions,
            seconds=self.seconds,
            capacity=sum(met) / len(met) if met else None,
            capacity_asked=asked if met else None,
            capacity_met=met or None,
            mean_iterations=self.used / self.positions if self.used else None,
            **({} if told is None else told._asdict()),
        )

    def compared(self, result: Result, other: "Tally", reference: int, bytes_per_token: float | None) -> Result:
        """The result with its difference to what `other` says of the same examples at the count `reference`."""
        tokens = sum(self.scored)
        if bytes_per_token is None:
            right = [mine - theirs for mine, theirs in zip(self.correct, other.correct, strict=True)]
            difference, bounds = sum(right) / tokens, tuple(paired_share(right, self.scored))
        else:
            scale = 1 / math.log(2) / bytes_per_token
            nats = [mine - theirs for mine, theirs in zip(self.nats, other.nats, strict=True)]
            difference = scale * sum(nats) / tokens
            bounds = tuple(scale * bound for bound in clustered_mean(nats, self.scored) or ())
        low, high = bounds or (None, None)
        return replace(result, reference=reference, difference=difference, difference_low=low, difference_high=high)


def evaluate(
    model: LanguageModel,
    batches: Batches,
    iterations: Sequence[int] | None = None,
    *,
    bytes_per_token: float | None = None,
    capacity: Capacity | None = None,
    selection: Selection | None = None,
    exit: str | Exit | None = None,
    restarts: int = 1,
    choose: Choose = "calmest",
    generator: torch.Generator | None = None,
) -> list[Result]:
    """Score a model at several iteration counts, one sweep per batch.

    Args:
        model: any family, measured in eval mode and left in the mode it is in.
        batches: for every difficulty (None where there is none) the batches (input_ids, labels), each (B, T) int64;
            labels[:, t] is the token to predict at position t, or -100 where nothing is scored. Padding on the right
            needs no mask where the model is causal: nothing attends to what follows it. Where it is not, the rows of a
            batch must be of one length.
        iterations: the counts; None is the count of the config (a Transformer has no loop and takes nothing but None).
        bytes_per_token: mean bytes of a scored token of text: bits per byte are reported, and exact match is not.
        capacity: share of the positions in routed passes; see `InnerThinkingTransformer.forward`.
        selection: how these positions are chosen; see there.
        exit: a rule that ends thinking early (exits.py); each count is then a run of its own, and a position's limit.
        restarts: runs of each example, from random initial states, of which one answers; FLOPs are those of all runs.
        choose: which: the calmest, that moved least in the end, or that of the majority (restarts.py).
        generator: draws those states, for each difficulty from where it stands; None is one of seed 0.

    Returns:
        A result per difficulty, in the order of `batches`, and count, ascending. Examples without a scored token are
        left out, so what is right does not depend on how examples are batched (but restarts draw states batch by batch,
        and iterations under an exit rule, shares of routed passes and FLOPs are means over all positions, padding too).
        Where there are several counts, each result is compared with that at the count of the config, or at the largest
        one if that is not among them.

    Raises:
        ValueError: a bad count, batch or bytes_per_token, or a difficulty without any scored token.
    """
    if bytes_per_token is not None and not bytes_per_token > 0:
        raise ValueError(f"bytes_per_token must be more than 0, not {bytes_per_token}")
    if iterations is not None and len(iterations) == 0:
        raise ValueError("iterations is empty; give at least one count")
    counts = sorted({model.check_depth(count) for count in ([None] if iterations is None else iterations)})
    options = routing_options(model, capacity=capacity, selection=selection)
    rule, many = choose_exit(model, exit), check_restarts(model, restarts, choose)
    if many is not None and rule is not None:
        raise ValueError(
            f"restarts={restarts} chooses after the last iteration, and exit {exit} has none: leave one out"
        )
    draws = torch.Generator(model.device).manual_seed(0) if generator is None else generator
    begun, results = draws.get_state(), []
    for difficulty, pairs in batches.items():
        draws.set_state(begun)  # so that no difficulty depends on those before it
        tallies = {count: Tally() for count in counts}
        frequencies = torch.zeros(model.config.vocab_size, dtype=torch.int64)
        for input_ids, labels in pairs:
            check_batch(model, input_ids, labels)
            frequencies += torch.bincount(labels[scored(labels)].cpu(), minlength=len(frequencies))
            ids, told = input_ids.to(model.device), labels.to(model.device)
            runs = None if many is None else restarted(many, ids, counts, restarts, draws, scored(told), choose)
            sweep(model, ids, told, tallies, options, rule, runs, restarts)
        if not tallies[counts[0]].scored:
            where = "the batches have" if difficulty is None else f"difficulty {difficulty} has"
            raise ValueError(f"{where} no scored token: give examples with labels other than {IGNORE}")
        guess = best_guess(frequencies, bytes_per_token)
        found = results_of(model, tallies, difficulty, bytes_per_token, capacity)
        results += [replace(result, guess=guess) for result in found]
    return results


def check_batch(model: LanguageModel, input_ids: Tensor, labels: Tensor) -> None:
    """Raise a ValueError unless the two have one shape (B, T), and the model knows all of their ids."""
    if input_ids.dim() != 2 or input_ids.shape != labels.shape:
        raise ValueError(
            f"input_ids {tuple(input_ids.shape)} and labels {tuple(labels.shape)} must have one shape "
            "(examples, positions)"
        )
    check_known(model, "input_ids: token id", input_ids)
    check_known(model, "labels: token id", labels[scored(labels)])


def results_of(
    model: LanguageModel,
    tallies: Mapping[int | None, Tally],
    difficulty: int | None,
    bytes_per_token: float | None,
    capacity: Capacity | None,
) -> list[Result]:
    """What the tallies of one difficulty say, by count, and how they differ from that of the reference count."""
    share = model.config.default_capacity if capacity is None else capacity
    default = model.config.default_iterations
    reference = default if default in tallies else max((count for count in tallies if count is not None), default=None)
    moved = [tally for tally in tallies.values() if tally.residuals and not bytes_per_token]
    pooled = settling(
        [r for tally in moved for r in tally.residuals],
        [r for tally in moved for r in tally.right],
        [i for tally in moved for i in range(len(tally.residuals))],
    )
    results = []
    for count, tally in tallies.items():
        asked = None if share is None or count is None else check_capacity(first_passes(share, count), count - 1)
        result = tally.result(count, difficulty, bytes_per_token, asked)
        if reference is not None and count != reference:
            result = tally.compared(result, tallies[reference], reference, bytes_per_token)
        if result.residual is not None:
            result = replace(
                result, auc_of_all=pooled.auc, auc_of_all_low=pooled.auc_low, auc_of_all_high=pooled.auc_high
            )
        results.append(result)
    return results


def best_guess(frequencies: Tensor, bytes_per_token: float | None) -> float:
    """What an answer that ignores the input reaches where answers occur so often, (V,): see `Result.guess`."""
    p = frequencies.double() / frequencies.sum()
    if bytes_per_token is None:
        return float(p.max())
    return float(torch.special.entr(p).sum()) / math.log(2) / bytes_per_token


@evaluating
@torch.inference_mode()
def sweep(
    model: LanguageModel,
    input_ids: Tensor,
    labels: Tensor,
    tallies: Mapping[int | None, Tally],
    options: Mapping[str, Any],
    exit: Exit | None = None,
    runs: Iterator[tuple[int | None, Reading]] | None = None,
    times: int = 1,
) -> None:
    """Add one batch (B, T) to the tallies of all counts, from one unroll; with an exit rule, from a run for each; or
    from `runs`, answers that cost so many `times` one unroll."""
    start = time.perf_counter()
    counted = scored(labels).sum(dim=1).tolist()
    moot = ~depended_on(scored(labels), model.config.causal)
    answers = model.sweep(input_ids, list(tallies), **options) if runs is None else runs
    if exit is not None:
        answers = ((count, think_until(model, input_ids, count, exit)) for count in tallies)
    for count, reading in answers:
        correct, nats = score(reading.logits, labels)  # on the CPU: the device has finished when the clock is read
        tally = tallies[count]
        tally.seconds += time.perf_counter() - start
        kept = [i for i, n in enumerate(counted) if n]
        tally.scored += [counted[i] for i in kept]
        tally.correct += [int(correct[i]) for i in kept]
        tally.nats += [float(nats[i]) for i in kept]
        if reading.residual is not None:
            largest = reading.residual.masked_fill(moot, 0).amax(dim=1).tolist()
            tally.residuals += [largest[i] for i in kept]
        tally.positions += input_ids.numel()
        flops = times * model.config.flops_per_token(count, input_ids.shape[1])
        if isinstance(reading, ModelOutput):  # which says what each position used
            flops = model.executed_flops_per_token(reading)
            if exit is not None:
                tally.used += int(reading.iterations.sum())
            if model.config.routed_layers and reading.selected is not None and reading.selected.numel():
                shares = input_ids.numel() * reading.selected.double().mean(dim=(0, 1, 2))  # by pass, over layers
                tally.taken = [a + b for a, b in zip(tally.taken or [0.0] * len(shares), shares.tolist(), strict=True)]
        tally.flops += input_ids.numel() * flops


def score(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Right tokens and summed loss in nats of each example, (B,) fp64 each, on the CPU.

    A position whose logits are NaN is never right, whatever argmax makes of it.
    """
    nats = token_losses(logits, labels).double()
    right = (logits.argmax(dim=-1) == labels) & ~nats.isnan()
    sums = torch.stack([right.sum(dim=1).double(), nats.sum(dim=1)]).cpu()
    return sums[0], sums[1]
