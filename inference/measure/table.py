"""An evaluation as a table for people: iterations down, difficulties across. Rich is imported when a table is made."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mull.inference.measure.results import Headline, Result, headline, is_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def print_table(results: Sequence[Result], *, title: str | None = None, console: Console | None = None) -> None:
    """Print `table(results)` to the console, by default on standard output."""
    (console or standard_output()).print(table(results, title=title))


def standard_output() -> Console:
    """A console on standard output, for which a reader who has gone is what it is for `print`: a BrokenPipeError."""
    from rich.console import Console

    class Plain(Console):
        def on_broken_pipe(self) -> None:  # rich would end the process with status 1
            raise BrokenPipeError

    return Plain()


def table(results: Sequence[Result], *, title: str | None = None) -> Table:
    """Iterations down; across: accuracy in percent (bits per byte for text) with its 95 % interval for each
    difficulty, exact match and loss when there is one difficulty only, FLOPs per token, and seconds of the sweep.

    FLOPs per token are those of the last difficulty (they grow with length), seconds those of all together.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    shown = "bits per byte" if is_text(results) else "accuracy in %"
    made = Table(
        title=None if title is None else Text(title),  # the name of a folder may look like markup
        caption=f"{shown} ± 95 % interval; loss in nats; sec: the sweep so far",
        box=SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    difficulties = list(dict.fromkeys(result.difficulty for result in results))
    at: dict[int | None, dict[int | None, Result]] = defaultdict(dict)  # by count and difficulty
    for result in results:
        at[result.iterations][result.difficulty] = result
    rows = {count: cells(found, difficulties, is_text(results)) for count, found in at.items()}
    names = [name for name in next(iter(rows.values())) if any(row[name] for row in rows.values())]  # no blank column
    for name in ["iterations", *names]:
        made.add_column(name, justify="right", overflow="fold")  # a narrow terminal breaks cells, and loses nothing
    for count, row in rows.items():
        made.add_row("-" if count is None else str(count), *(row[name] for name in names))
    return made


def cells(found: Mapping[int | None, Result], difficulties: Sequence[int | None], text: bool) -> dict[str, str]:
    """The cells of one count by the name of their column; blank where nothing was measured, or nothing applies."""
    one, unit = len(difficulties) == 1, "bits per byte" if text else "accuracy %"
    measured = [found[difficulty] for difficulty in difficulties if difficulty in found]
    last = measured[-1]
    shown = {}
    for difficulty in difficulties:
        name = f"at {difficulty}" if not one else unit if difficulty is None else f"{unit} at {difficulty}"
        shown[name] = with_interval(headline(found[difficulty]), percent=not text) if difficulty in found else ""
    if one:
        exact = Headline(last.exact_match or 0.0, last.exact_match_low, last.exact_match_high)
        shown["exact match %"] = "" if last.exact_match is None else with_interval(exact, percent=True)
        shown["loss"] = f"{last.loss:.4f}"
        shown["capacity %"] = "" if last.capacity is None else f"{100 * last.capacity:.1f}"
    used = [result.mean_iterations for result in measured if result.mean_iterations is not None]
    shown["mean iterations"] = f"{sum(used) / len(used):.2f}" if used else ""
    shown["FLOPs/token" if one else f"FLOPs/token ({difficulties[-1]})"] = si(last.flops_per_token)
    shown["sec"] = f"{sum(result.seconds for result in measured):.2f}"
    return shown


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
