"""The picture of an evaluation: accuracy (bits per byte for text) by iterations and FLOPs, and what iterating adds.

Three panels: values against iterations; the same against FLOPs per token; and differences to a reference count. The
bands of the first two are the intervals of single counts. They overlap also where one count is surely better, since an
example that is hard is hard at every count; the third panel shows the difference on the same examples, and its band is
the one to compare counts by.

One line a difficulty, with its 95 % band; colours run from light to dark violet (viridis, which the colour-blind read
in order). matplotlib is imported when a picture is drawn, and through its objects only: no global figure, no display.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mull.checkpoints.quantities import BITS, is_text, number, reference_of
from mull.checkpoints.replacing import replace_all
from mull.inference.measure.results import Result, headline, rows_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTHS, HEIGHT, DPI = {2: 10.0, 3: 12.4}, 4.4, 150  # inches by the number of panels, inches, pixels per inch
MARKERS = "XPD"  # of baselines, as the styles are; lines of the model itself are solid, with dots
BASELINE_STYLES: Sequence[Any] = ("--", "-.", (0, (4, 1, 1, 1, 1, 1)))
MOST_TICKS = 10
GREY = "0.35"


def write_png(figure: Figure, path: str | Path) -> None:
    """Write a picture as a PNG, whole or not at all."""
    replace_all(Path(path).parent, {Path(path).name: png_of(figure)})


def png_of(figure: Figure) -> bytes:
    """A picture as the contents of a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    png = io.BytesIO()
    FigureCanvasAgg(figure).print_png(png)
    return png.getvalue()


def draw(
    results: Sequence[Result],
    *,
    title: str | None = None,
    chance: float | None = None,
    trained_iterations: float | None = None,
    baselines: Mapping[str, Sequence[Result]] | None = None,
    difficulty_name: str = "difficulty",
) -> Figure:
    """Two or three panels: against iterations (log2), against FLOPs per token (log), and differences, if there are any.

    Args:
        results: of a model with a loop, with at least one count; otherwise a ValueError.
        title: above the panels.
        chance: where guessing lands, in the unit of the vertical axis (0 .. 1 for accuracy), one dotted line; None
            draws what each difficulty's most frequent answers give (`Result.guess`).
        trained_iterations: count of a call that names none; a vertical line on the left.
        baselines: results of other models by name; one without a loop is a level line on the left, a point beside it.
            Their difficulties take the colours of `results`; those that `results` lacks are left out.
        difficulty_name: what the difficulty counts, for the legend, e.g. "length".
    """
    from matplotlib.figure import Figure

    counts = sorted({result.iterations for result in results if result.iterations is not None})
    if not counts:
        raise ValueError("nothing to draw: no result has an iteration count; evaluate a model with a loop")
    reference, text = reference_of(rows_of(results)), is_text(rows_of(results))
    panels = 2 if reference is None else 3
    figure = Figure(figsize=(WIDTHS[panels], HEIGHT), dpi=DPI, layout="constrained")
    left, right, *more = figure.subplots(1, panels)
    right.sharey(left)
    colors = difficulty_colors(results)
    looks = dict(zip(baselines or {}, zip(cycle(BASELINE_STYLES), cycle(MARKERS)), strict=False))
    for difficulty, line in by_difficulty(results):
        draw_line((left, right), line, colors[difficulty], "-", "o")
        for panel in more:
            draw_differences(panel, line, colors[difficulty])
    for name, others in (baselines or {}).items():
        for difficulty, line in by_difficulty(others):
            if difficulty in colors:
                draw_line((left, right), line, colors[difficulty], *looks[name])
    dress(left, right, counts, text)
    for panel in more:
        dress_differences(panel, counts, reference, text)
    lines = {} if trained_iterations is None else {"default count": "-"}
    lines |= mark((left, right), results, colors, chance, trained_iterations)
    add_legend(figure, colors, looks, difficulty_name, lines)
    if title is not None:
        figure.suptitle(title, fontsize=12, parse_math=False)  # a $ in the name of a folder is a $
    return figure


def by_difficulty(results: Sequence[Result]) -> Iterator[tuple[int | None, list[Result]]]:
    """(difficulty, its results by ascending count), in the order in which difficulties first occur."""
    for difficulty in dict.fromkeys(result.difficulty for result in results):
        own = [result for result in results if result.difficulty == difficulty]
        yield difficulty, sorted(own, key=lambda result: result.iterations or 0)


def difficulty_colors(results: Sequence[Result]) -> dict[int | None, Any]:
    """A colour for every difficulty, darker where it is harder; the pale end of viridis is left out."""
    from matplotlib import colormaps

    difficulties = sorted({result.difficulty for result in results}, key=lambda difficulty: difficulty or 0)
    share = {d: i / max(1, len(difficulties) - 1) for i, d in enumerate(difficulties)}
    return {d: colormaps["viridis"](0.78 * (1 - share[d]) if len(share) > 1 else 0.3) for d in difficulties}


def draw_line(axes: tuple[Axes, Axes], line: Sequence[Result], color: Any, style: Any, marker: str) -> None:
    """A model at one difficulty on both panels: values, and the band of their intervals where these are known. Without
    a loop it is a level line on the left, and a point on the right."""
    for result in line:
        if result.iterations is None:
            value = headline(result).value
            axes[0].axhline(value, color=color, linestyle=style, linewidth=1.4)
            axes[1].plot(result.flops_per_token, value, color=color, marker=marker, markersize=9, markeredgecolor="k")
    line = [result for result in line if result.iterations is not None]
    if not line:
        return
    values = [headline(result) for result in line]
    low = [value.value if value.low is None else value.low for value in values]
    high = [value.value if value.high is None else value.high for value in values]
    counts = [float(result.iterations) for result in line if result.iterations is not None]
    for panel, x in zip(axes, (counts, [result.flops_per_token for result in line]), strict=True):
        panel.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
        panel.plot(x, [value.value for value in values], color=color, linestyle=style, marker=marker, markersize=5)


def draw_differences(panel: Axes, line: Sequence[Result], color: Any) -> None:
    """Differences of one difficulty to the reference count, which is 0 by definition, with their paired bands."""
    line = [result for result in line if result.iterations is not None]
    values = [result.difference or 0.0 for result in line]
    bounds = [(result.difference_low, result.difference_high) for result in line]
    low = [value if pair[0] is None else pair[0] for value, pair in zip(values, bounds, strict=True)]
    high = [value if pair[1] is None else pair[1] for value, pair in zip(values, bounds, strict=True)]
    counts = [float(result.iterations) for result in line if result.iterations is not None]
    panel.fill_between(counts, low, high, color=color, alpha=0.18, linewidth=0)
    panel.plot(counts, values, color=color, marker="o", markersize=5)


def dress(left: Axes, right: Axes, counts: Sequence[int], text: bool) -> None:
    """Axes, ticks and names of the panels of values."""
    from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

    over_counts(left, counts)
    right.set_xscale("log")
    low, high = right.get_xlim()
    decades = LogLocator(subs=(1.0,) if high > 300 * low else (1.0, 2.0, 5.0))
    right.xaxis.set_major_locator(decades if high > 8 * low else MaxNLocator(4, steps=[1, 2, 5, 10]))
    right.xaxis.set_minor_locator(NullLocator())
    right.xaxis.set_major_formatter(EngFormatter())
    right.set_xlabel("FLOPs per token")
    right.tick_params(labelleft=False)
    left.set_ylabel("bits per byte" if text else "accuracy per scored token")
    left.set_title("against iterations", fontsize=10)
    right.set_title("against work", fontsize=10)
    if not text:
        left.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    for panel in (left, right):
        quiet(panel)


def dress_differences(panel: Axes, counts: Sequence[int], reference: int | None, text: bool) -> None:
    """Axes, ticks and names of the panel of differences; the line of no difference."""
    from matplotlib.ticker import FuncFormatter

    over_counts(panel, counts)
    panel.axhline(0, color=GREY, linewidth=0.9)
    panel.set_ylabel("bits per byte" if text else "points of accuracy")
    panel.set_title(f"difference to {reference} iterations, same examples", fontsize=10)
    if not text:
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:+g}" if value else "0"))
    quiet(panel)


def over_counts(panel: Axes, counts: Sequence[int]) -> None:
    """A horizontal axis of iterations, log2."""
    from matplotlib.ticker import NullLocator

    panel.set_xscale("log", base=2)
    # many counts would overlap: then the powers of two among them stand for all
    few = counts if len(counts) <= MOST_TICKS else [count for count in counts if count & (count - 1) == 0]
    panel.set_xticks(few, [str(count) for count in few])
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xlabel("iterations")


def quiet(panel: Axes) -> None:
    """A light grid behind the lines, and no frame."""
    panel.grid(True, color="0.9", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def mark(
    panels: tuple[Axes, Axes],
    results: Sequence[Result],
    colors: Mapping[int | None, Any],
    chance: float | None,
    trained_iterations: float | None,
) -> dict[str, Any]:
    """Draw the levels of guessing on both panels, and the default count on the left one. Returns the name of the former
    in the legend, and its style. A level far from everything else would flatten it, and is told by its number."""
    if trained_iterations is not None:
        panels[0].axvline(trained_iterations, color=GREY, linestyle="-", linewidth=0.9)
    guesses = {result.difficulty: result.guess for result in results if result.guess is not None}
    levels = [(GREY, chance)] if chance is not None else [(colors[d], guess) for d, guess in guesses.items()]
    if not levels:
        return {}
    text = is_text(rows_of(results))
    constant = "frequencies of tokens alone" if text else "always the most frequent answer"
    low, high = panels[0].get_ylim()
    if text and chance is None and any(not low - (high - low) < level < high + (high - low) for _, level in levels):
        return {f"{constant}: {', '.join(number(level, BITS) for _, level in levels)}, not drawn": "none"}
    for color, level in levels:
        for panel in panels:
            panel.axhline(level, color=color, linestyle=":", linewidth=1.2)
    return {constant if chance is None else "chance": ":"}


def add_legend(
    figure: Figure,
    colors: Mapping[int | None, Any],
    looks: Mapping[str, tuple[Any, str]],
    difficulty_name: str,
    lines: Mapping[str, Any],
) -> None:
    """One legend under the panels: difficulties by colour, baselines by style and marker, further lines, and bands."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    names = {"this model" if d is None else f"{difficulty_name} {d}": color for d, color in colors.items()}
    entries: list[Any] = [Line2D([], [], color=c, marker="o", markersize=5, label=n) for n, c in names.items()]
    for name, (style, marker) in looks.items():
        entries.append(Line2D([], [], color="0.3", linestyle=style, marker=marker, markersize=7, label=name))
    entries += [Line2D([], [], color=GREY, linestyle=style, label=name) for name, style in lines.items()]
    entries.append(Patch(color=GREY, alpha=0.18, linewidth=0, label="95 % interval"))
    lines_needed = -(-len(entries) // (5 if len(figure.axes) == 2 else 8))  # as many lines as the width needs
    columns = -(-len(entries) // lines_needed)
    figure.legend(handles=entries, loc="outside lower center", frameon=False, ncols=columns)
