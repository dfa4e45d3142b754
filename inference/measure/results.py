"""Result: one line of an evaluation, a model at one iteration count and one difficulty; and its JSON and CSV."""

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, NamedTuple, get_args

from mull.checkpoints.quantities import Row, bounds_of_bits


@dataclass(frozen=True, kw_only=True)
class Result:
    """What was measured at one iteration count. `_low` and `_high` bound the 95 % interval (see `intervals`).

    Attributes:
        iterations: the count; None for a model without a loop.
        difficulty: the task's knob; None where there is none, as for text.
        accuracy: share of the scored tokens that are the most likely one.
        exact_match: share of the examples with every scored token right; None for text, whose windows are no answers.
        loss: cross entropy, nats per scored token; its bounds are None for a single example.
        bits_per_byte: the loss in bits per byte of text; None without a bytes_per_token.
        examples: number of examples with a scored token.
        flops_per_token: forward FLOPs per position of one pass at this count.
        capacity: share of the tokens that a routed pass took, on average over passes; None without routed passes.
        capacity_asked: of each routed pass the share that was asked for.
        capacity_met: of each routed pass the share that took it, on average over the layers.
        mean_iterations: what positions used on average under an exit rule; None without one.
        reference: the count that the difference is to; None where nothing is compared.
        difference: accuracy, or for text bits per byte, less that at the reference, on the same examples; its interval
            is paired by example, and far narrower than those of the two.
        guess: what the best answer that ignores the input reaches, in the unit of the headline: accuracy of always
            giving the most frequent answer, or for text the bits per byte of how often each token occurs here.
        residual: how far the last iteration moved the state, |s_R - s_{R-1}| / |s_R|: the largest of the positions that
            an example's answer depends on (settling.py), on average over examples; None without a loop, at one
            iteration, under an exit rule.
        settled: share of the examples whose residual is below settling.SETTLED: the model has finished thinking.
        auc: how well the residual tells examples that are right throughout from others, 0.5 for not at all; None for
            text, and where all examples are alike.
        auc_of_all: the same over the examples of this difficulty at all counts together; its interval knows that an
            example occurs once for each count.
        verified: share of the answers, written out, that the data's own verifier takes; None unless asked for.
        alignment: cosine of the states that two random starts come to, on average over scored positions; None, and in
            JSON not there, unless asked for.
        seconds: wall time of the sweep until this count's answers were scored, read-outs at smaller counts included.
    """

    iterations: int | None
    difficulty: int | None
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    exact_match: float | None
    exact_match_low: float | None
    exact_match_high: float | None
    loss: float
    loss_low: float | None
    loss_high: float | None
    bits_per_byte: float | None
    examples: int
    flops_per_token: float
    seconds: float
    capacity: float | None = None
    mean_iterations: float | None = None
    capacity_asked: tuple[float, ...] | None = None
    capacity_met: tuple[float, ...] | None = None
    reference: int | None = None
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    guess: float | None = None
    residual: float | None = None
    settled: float | None = None
    settled_low: float | None = None
    settled_high: float | None = None
    auc: float | None = None
    auc_low: float | None = None
    auc_high: float | None = None
    auc_of_all: float | None = None
    auc_of_all_low: float | None = None
    auc_of_all_high: float | None = None
    verified: float | None = None
    verified_low: float | None = None
    verified_high: float | None = None
    alignment: float | None = None
    alignment_low: float | None = None
    alignment_high: float | None = None


ON_REQUEST = ("alignment", "alignment_low", "alignment_high")  # fields that JSON leaves out where nobody asked


class Headline(NamedTuple):
    """The one number a result is shown by, with its 95 % interval."""

    value: float
    low: float | None
    high: float | None


def rows_of(results: Sequence[Result]) -> list[Row]:
    """Results as plain values, of which quantities.py says how they are written."""
    return [asdict(result) for result in results]


def headline(result: Result) -> Headline:
    """Bits per byte where there are such, otherwise accuracy."""
    if result.bits_per_byte is None:
        return Headline(result.accuracy, result.accuracy_low, result.accuracy_high)
    return Headline(result.bits_per_byte, *bounds_of_bits(asdict(result)))


def to_json(results: Sequence[Result]) -> str:
    """`{"rows": [...]}` with the fields of Result as keys; null where a column does not apply or is not finite."""
    rows = []
    for result in results:
        left_out = ON_REQUEST if result.alignment is None else ()
        rows.append({name: value for name, value in finite(result).items() if name not in left_out})
    return json.dumps({"rows": rows}, indent=2, allow_nan=False)


def from_json(text: str) -> list[Result]:
    """The results of `to_json` or of a depth.json; other keys are left aside, and a null loss comes back as NaN. Raises
    ValueError for a text that is no such JSON, and a result that lacks a field."""
    found = json.loads(text)
    if not isinstance(found, dict) or not isinstance(found.get("rows"), list):
        raise ValueError('an evaluation is one JSON object with a list "rows"; this is something else')
    results = []
    required = [field.name for field in fields(Result) if field.default is MISSING]
    always = [field.name for field in fields(Result) if type(None) not in get_args(field.type)]
    always.remove("loss")  # null is NaN
    for values in found["rows"]:
        lacking = [name for name in required if name not in values]
        if lacking:
            raise ValueError(f"a result of the evaluation lacks {', '.join(lacking)}; evaluate the model again")
        unsaid = [name for name in always if values[name] is None]
        if unsaid:
            raise ValueError(f"a result of the evaluation has null for {', '.join(unsaid)}; evaluate the model again")
        known = {field.name: values[field.name] for field in fields(Result) if field.name in values}
        known = {name: tuple(value) if isinstance(value, list) else value for name, value in known.items()}
        results.append(Result(**{**known, "loss": math.nan if known["loss"] is None else known["loss"]}))
    return results


def to_csv(results: Sequence[Result]) -> str:
    """One line a result under a line of names; empty where JSON has null, blanks between the shares of passes."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Result)], lineterminator="\n")
    writer.writeheader()
    for result in results:
        plain = finite(result).items()
        writer.writerow({name: " ".join(map(str, v)) if isinstance(v, tuple) else v for name, v in plain})
    return text.getvalue()


def finite(result: Result) -> dict[str, Any]:
    """A result as plain values, None instead of NaN and infinity, which JSON has no word for."""
    bad = {name for name, value in asdict(result).items() if isinstance(value, float) and not math.isfinite(value)}
    return {name: None if name in bad else value for name, value in asdict(result).items()}
