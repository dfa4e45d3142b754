"""An evaluation as a table for people: iterations down, difficulties across. Rich is imported when a table is made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mull.inference.measure.results import Headline, Result, headline, is_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Key = tuple[int | None, int | None]  # (iterations, difficulty)


def print_table(results: Sequence[Result], *, title: str | None = None, console: Console | None = None) -> None:
    """Print `table(results)` to the console, by default on standard output."""
    from rich.console import Console

    (console or Console()).print(table(results, title=title))


def table(results: Sequence[Result], *, title: str | None = None) -> Table:
    """Iterations down; across: accuracy in percent (bits per byte for text) with its 95 % interval for each
    difficulty, exact match and loss when there is one difficulty only, FLOPs per token, and seconds of the sweep.

    FLOPs per token are those of the last difficulty (they grow with length), seconds those of all together.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    shown = "bits per byte" if is_text(results) else "accuracy in %"
    made = Table(
        title=title,
        caption=f"{shown} ± 95 % interval; loss in nats; sec: the sweep so far",
        box=SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    at = {(result.iterations, result.difficulty): result for result in results}
    difficulties = list(dict.fromkeys(result.difficulty for result in results))
    for name in ["iterations", *headers(results, difficulties)]:
        made.add_column(name, justify="right", overflow="fold")  # a narrow terminal breaks cells, and loses nothing
    for count in dict.fromkeys(result.iterations for result in results):
        made.add_row("-" if count is None else str(count), *cells(at, count, difficulties))
    return made


def headers(results: Sequence[Result], difficulties: Sequence[int | None]) -> list[str]:
    """Names of the columns after the first."""
    used = ["mean iterations"] if any(result.mean_iterations is not None for result in results) else []
    if len(difficulties) == 1:
        shown = "bits per byte" if is_text(results) else "accuracy %"
        at = "" if difficulties[0] is None else f" at {difficulties[0]}"
        exact = [] if is_text(results) else ["exact match %"]
        routed = ["capacity %"] if any(result.capacity is not None for result in results) else []
        return [shown + at, *exact, "loss", *routed, *used, "FLOPs/token", "sec"]
    return [*(f"at {d}" for d in difficulties), *used, f"FLOPs/token ({difficulties[-1]})", "sec"]


def cells(at: dict[Key, Result], count: int | None, difficulties: Sequence[int | None]) -> list[str]:
    """The cells of one count, after the first; a blank where nothing was measured."""
    found = [at.get((count, difficulty)) for difficulty in difficulties]
    measured = [result for result in found if result is not None]
    text = is_text(measured)
    shown = ["" if result is None else with_interval(headline(result), percent=not text) for result in found]
    if len(difficulties) == 1:
        result = measured[0]
        if result.exact_match is not None:
            exact = Headline(result.exact_match, result.exact_match_low, result.exact_match_high)
            shown.append(with_interval(exact, percent=True))
        shown.append(f"{result.loss:.4f}")
        if any(other.capacity is not None for other in at.values()):
            shown.append("" if result.capacity is None else f"{100 * result.capacity:.1f}")
    used = [result.mean_iterations for result in measured if result.mean_iterations is not None]
    if any(other.mean_iterations is not None for other in at.values()):
        shown.append(f"{sum(used) / len(used):.2f}" if used else "")
    return [*shown, si(measured[-1].flops_per_token), f"{sum(result.seconds for result in measured):.2f}"]


def with_interval(shown: Headline, percent: bool) -> str:
    """`97.1 ±1.0` in percent, or `1.234 ±0.033`; the larger side of an interval that is not symmetric."""
    scale, digits = (100, 1) if percent else (1, 3)
    value = f"{scale * shown.value:.{digits}f}"
    if shown.low is None or shown.high is None:
        return value
    return f"{value} ±{scale * max(shown.high - shown.value, shown.value - shown.low):.{digits}f}"


def si(value: float) -> str:
    """A number of at least 0 with three digits and a metric prefix: 1234567 -> `1.23 M`."""
    for limit, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * limit:
            return f"{value / limit:.3g} {prefix}" if value < 999.5 * limit else f"{value / limit:.0f} {prefix}"
    return f"{value:.3g}"
