"""A comparison as tables for people. Rich is imported when one is made."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mull.checkpoints.quantities import BITS, MEAN, PERCENT, interval_of, number, si, with_interval
from mull.inference.measure.table import filled
from mull.training.comparing.cells import family_of
from mull.training.comparing.envelope import Best, Owner
from mull.training.comparing.exchange import Exchange
from mull.training.comparing.rows import Row

if TYPE_CHECKING:
    from rich.table import Table

WIDEST = 16  # letters of a family of strategies in a cell
PLAIN = PERCENT._replace(scale=1.0)
BOUNDED = ("underthinking", "accuracy", "difference")  # what the bounds of a metric are of


def short_names(folders: Iterable[str]) -> dict[str, str]:
    """What each folder is called in a table: nothing where there is one only, the end of its path where that is enough.

    A model behind an endpoint is called by its name there.
    """
    known = list(dict.fromkeys(folders))
    ends = [re.split(" at https?://", folder)[0].rstrip("/").rpartition("/")[2] for folder in known]
    if len(known) == 1:
        return {known[0]: ""}
    return dict(zip(known, ends if len(set(ends)) == len(ends) else known, strict=True))


def table_of(rows: Sequence[Row], best: Sequence[Best], title: str | None = None) -> Table:
    """Every row; those on the envelope of their difficulty are marked, and so are those that asked the checker."""
    on = {(each.folder, each.strategy, each.iterations, each.difficulty) for each in best}
    names = short_names(row.folder for row in rows)
    cells: dict[Any, dict[str, str]] = {}
    for place, row in enumerate(rows):
        here = (row.folder, row.strategy, row.iterations, row.difficulty)
        cells[place] = {
            "folder": names[row.folder],
            "at": "" if row.difficulty is None else str(row.difficulty),
            "strategy": row.strategy,
            "iterations": "-" if row.iterations is None else str(row.iterations),
            "accuracy %": interval_of(asdict(row), "accuracy", PERCENT),
            "FLOPs": si(row.flops_per_problem),
            "tokens": number(row.tokens_per_problem, PLAIN),
            "calls": number(row.calls_per_problem, PLAIN),
            "sec": f"{row.seconds:.1f}",
            "": "ceiling" if row.ceiling else "*" if here in on else "",
        }
    counts = sorted({row.examples for row in rows})
    told = f"{' or '.join(map(str, counts))} problems a row; 95 % intervals; FLOPs, tokens and calls of a problem"
    return filled(cells, title, f"at: difficulty; {told}; * nothing cheaper is as accurate")


def exchange_table(rates: Sequence[Exchange]) -> Table | None:
    """What a doubling of the iterations is worth; None where nothing was worked out."""
    if not rates:
        return None
    names = short_names(each.folder for each in rates)
    several = len({each.difficulty for each in rates}) > 1
    cells: dict[Any, dict[str, str]] = {}
    for place, each in enumerate(rates):
        family = family_of(each.by[0])
        by = family if len(family) <= WIDEST else f"{family.partition(',')[0]} ..."  # the JSON has all of it
        cells[place] = {
            "folder": names[each.folder],
            "at": "all" if each.difficulty is None and several else str(each.difficulty or ""),
            "iterations of": f"{each.base}, {each.iterations} to {each.more_iterations}",
            "accuracy %": f"{100 * each.accuracy:.1f} to {100 * each.more_accuracy:.1f}",
            "bought with": f"samples of {by}" if each.currency == "samples" else "tokens",
            "a doubling is worth": times(each.factor, each.factor_low, each.factor_high, each.reason),
            "at FLOPs": "" if each.cost is None else times(each.cost, each.cost_low, each.cost_high, None),
        }
    return filled(
        cells, "what doubling the iterations is worth",
        "times as many samples or tokens; FLOPs: of those, as a multiple of the iterations'; 95 % intervals, paired "
        "bootstrap; ?: beyond what was measured",
    )  # fmt: skip


def times(value: float | None, low: float | None, high: float | None, reason: str | None) -> str:
    """`x2.00 (1.70 to 2.41)`; for no value why there is none; `?` for an end that lies beyond what was measured."""
    if value is None:
        return (reason or "none").partition(":")[0]
    return f"x{number(value, MEAN)} ({'?' if low is None else number(low, MEAN)} to {number(high, MEAN) or '?'})"


def owners_table(owners: Sequence[Owner]) -> Table | None:
    """Who is the best for a budget, by difficulty; None where FLOPs are not known."""
    if not owners:
        return None
    cells: dict[Any, dict[str, str]] = {}
    names = short_names(each.folder for each in owners)
    for difficulty in dict.fromkeys(each.difficulty for each in owners):
        own = [each for each in owners if each.difficulty == difficulty and each.share > 0]
        said = [each.strategy + (f" ({names[each.folder]})" if names[each.folder] else "") for each in own]
        parts = [f"{name} {100 * each.share:.0f} %" for name, each in zip(said, own, strict=True)]
        cells[difficulty] = {"at": "" if difficulty is None else str(difficulty), "owners": ", ".join(parts)}
    return filled(cells, "who is best for its FLOPs", "share of the axis of log2 FLOPs on which it is the best")


def metric_table(numbers: Sequence[dict[str, Any]]) -> Table | None:
    """The numbers of one metric of a paper; None where there are none."""
    if not numbers:
        return None
    names = short_names(each["folder"] for each in numbers)
    cells: dict[Any, dict[str, str]] = {}
    for place, each in enumerate(numbers):
        row: dict[str, str] = {"folder": names[each["folder"]]}
        for name, value in each.items():
            if name in ("metric", "folder", "low", "high"):
                continue
            bounds = (each.get("low"), each.get("high")) if name in BOUNDED else (None, None)
            written = with_interval(value, *bounds, BITS) if isinstance(value, float) else str(value)
            row["at" if name == "difficulty" else name.replace("_", " ")] = "" if value is None else written
        cells[place] = row
    return filled(cells, str(numbers[0]["metric"]), "at: difficulty; 95 % intervals" if "low" in numbers[0] else "")
