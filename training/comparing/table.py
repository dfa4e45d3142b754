"""A comparison as tables for people. Rich is imported when one is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mull.checkpoints.quantities import MEAN, PERCENT, interval_of, number, si, with_interval
from mull.inference.measure.table import filled
from mull.training.comparing.envelope import Best, Owner
from mull.training.comparing.exchange import Exchange
from mull.training.comparing.rows import Row

if TYPE_CHECKING:
    from rich.table import Table


def table_of(rows: Sequence[Row], best: Sequence[Best], title: str | None = None) -> Table:
    """Every row; those on the envelope of their difficulty are marked, and so are those that asked the checker."""
    on = {(each.folder, each.strategy, each.iterations, each.difficulty) for each in best}
    cells: dict[Any, dict[str, str]] = {}
    several = len({row.folder for row in rows}) > 1
    for place, row in enumerate(rows):
        here = (row.folder, row.strategy, row.iterations, row.difficulty)
        cells[place] = {
            "folder": row.folder if several else "",
            "difficulty": "" if row.difficulty is None else str(row.difficulty),
            "strategy": row.strategy,
            "iterations": "-" if row.iterations is None else str(row.iterations),
            "accuracy %": interval_of(asdict(row), "accuracy", PERCENT),
            "FLOPs": si(row.flops_per_problem),
            "tokens": number(row.tokens_per_problem, PERCENT._replace(scale=1.0)),
            "calls": number(row.calls_per_problem, PERCENT._replace(scale=1.0)),
            "sec": f"{row.seconds:.1f}",
            "best": "ceiling" if row.ceiling else "*" if here in on else "",
        }
    counts = sorted({row.examples for row in rows})
    told = f"{' or '.join(map(str, counts))} problems a row; 95 % intervals; FLOPs, tokens and calls of a problem"
    return filled(cells, title, f"{told}; * nothing cheaper is as accurate")


def exchange_table(rates: Sequence[Exchange]) -> Table | None:
    """What a doubling of the iterations is worth; None where nothing was worked out."""
    if not rates:
        return None
    cells: dict[Any, dict[str, str]] = {}
    folders = len({each.folder for each in rates}) > 1
    difficulties = len({each.difficulty for each in rates}) > 1
    for place, each in enumerate(rates):
        cells[place] = {
            "folder": each.folder if folders else "",
            "difficulty": "all" if each.difficulty is None and difficulties else str(each.difficulty or ""),
            "iterations of": each.base,
            "from, to": f"{each.iterations}, {each.more_iterations}",
            "accuracy %": f"{100 * each.accuracy:.1f}, {100 * each.more_accuracy:.1f}",
            "bought with": f"{each.currency} ({short(each.by)})",
            "a doubling is worth": times(each.factor, each.factor_low, each.factor_high),
            "at FLOPs": times(each.cost, each.cost_low, each.cost_high),
            "why not": each.reason or "",
        }
    return filled(
        cells, "what doubling the iterations is worth",
        "times as many samples or tokens; FLOPs as a multiple of those of the iterations; 95 % intervals of the paired "
        "bootstrap",
    )  # fmt: skip


def short(strategies: Sequence[str], most: int = 3) -> str:
    """The names of some strategies, the later ones as a number."""
    more = len(strategies) - most
    return ", ".join(strategies[:most]) + (f" and {more} more" if more > 0 else "")


def times(value: float | None, low: float | None, high: float | None) -> str:
    """`x2.00 (1.70 to 2.41)`; `none` for no value, `?` for an end that lies beyond what was measured."""
    if value is None and low is None:
        return "none"
    ends = f"({'?' if low is None else number(low, MEAN)} to {'?' if high is None else number(high, MEAN)})"
    return f"none {ends}" if value is None else f"x{number(value, MEAN)} {ends}"


def owners_table(owners: Sequence[Owner]) -> Table | None:
    """Who is the best for a budget, by difficulty; None where FLOPs are not known."""
    if not owners:
        return None
    cells: dict[Any, dict[str, str]] = {}
    folders = len({each.folder for each in owners}) > 1
    for difficulty in dict.fromkeys(each.difficulty for each in owners):
        own = [each for each in owners if each.difficulty == difficulty and each.share > 0]
        said = [f"{each.strategy} ({each.folder})" if folders else each.strategy for each in own]
        parts = [f"{name} {100 * each.share:.0f} %" for name, each in zip(said, own, strict=True)]
        cells[difficulty] = {"difficulty": "" if difficulty is None else str(difficulty), "owners": ", ".join(parts)}
    return filled(cells, "who is best for its FLOPs", "share of the axis of log2 FLOPs on which it is the best")


def metric_table(numbers: Sequence[dict[str, Any]]) -> Table | None:
    """The numbers of one metric of a paper; None where there are none."""
    if not numbers:
        return None
    cells: dict[Any, dict[str, str]] = {}
    for place, each in enumerate(numbers):
        low, high = each.get("low"), each.get("high")
        row: dict[str, str] = {}
        for name, value in each.items():
            if name in ("metric", "low", "high"):
                continue
            if isinstance(value, float):
                bounded = name in ("underthinking", "accuracy", "difference")
                unit = MEAN._replace(digits=4)
                row[name] = with_interval(value, low if bounded else None, high if bounded else None, unit)
            else:
                row[name] = "" if value is None else str(value)
        cells[place] = row
    return filled(cells, str(numbers[0]["metric"]), "")
