"""The rows of a comparison: one for each cell, as JSON and CSV have them."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from mull.inference.measure.intervals import wilson
from mull.training.comparing.cells import Cell


@dataclass(frozen=True)
class Row:
    """A cell in numbers.

    Attributes:
        folder: the checkpoint folder, or the model behind an endpoint.
        strategy: as written.
        iterations: of every token; None for a model without a loop.
        difficulty: of the problems; None where they have none.
        accuracy, accuracy_low, accuracy_high: share of the problems that the exact checker takes, 95 % interval.
        flops_per_problem: as executed; None where nobody can count them.
        tokens_per_problem: written, those of dropped candidates included.
        calls_per_problem: of the model.
        seconds: all problems together.
        examples: problems.
        ceiling: whether the strategy asked the exact checker: what nobody can have, and others are measured against.
    """

    folder: str
    strategy: str
    iterations: int | None
    difficulty: int | None
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    flops_per_problem: float | None
    tokens_per_problem: float
    calls_per_problem: float
    seconds: float
    examples: int
    ceiling: bool


def row_of(cell: Cell) -> Row:
    """The row of a cell."""
    n, place, flops = len(cell.answered), cell.place, cell.flops
    low, high = wilson(float(cell.right.sum()), n)
    return Row(
        folder=place.folder,
        strategy=place.strategy,
        iterations=place.iterations,
        difficulty=place.difficulty,
        accuracy=float(cell.right.mean()),
        accuracy_low=low,
        accuracy_high=high,
        flops_per_problem=None if flops is None else float(flops.mean()),
        tokens_per_problem=float(cell.tokens.mean()),
        calls_per_problem=sum(each.calls for each in cell.answered) / n,
        seconds=sum(each.seconds for each in cell.answered),
        examples=n,
        ceiling=cell.ceiling,
    )


def to_csv(rows: Sequence[Row]) -> str:
    """One line a row under a line of names; empty where JSON has null."""
    return lines([field.name for field in fields(Row)], [asdict(row) for row in rows])


def lines(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV with a head line: a column for each name, in the order of the names."""
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
