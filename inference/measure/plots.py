"""The picture of an evaluation: accuracy (bits per byte for text) against iterations, and against FLOPs per token.

One line a difficulty, with its 95 % band; colours run from light to dark violet (viridis, which the colour-blind read
in order). matplotlib is imported when a picture is drawn, and through its objects only: no global figure, no display.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mull.inference.measure.results import Result, headline, is_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE, DPI = (10.0, 4.4), 150  # inches, pixels per inch
MARKERS = "XPD"  # of baselines, as the styles are; lines of the model itself are solid, with dots
BASELINE_STYLES: Sequence[Any] = ("--", "-.", (0, (4, 1, 1, 1, 1, 1)))
MOST_TICKS = 10


def write_plot(results: Sequence[Result], path: str | Path, **options: Any) -> None:
    """Write the picture that `draw` makes with these options as a PNG of 1500 x 660 pixels."""
    write_png(draw(results, **options), path)


def write_png(figure: Figure, path: str | Path) -> None:
    """Write a picture as a PNG; no file is made unless it could be drawn."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    png = io.BytesIO()
    FigureCanvasAgg(figure).print_png(png)
    Path(path).write_bytes(png.getvalue())


def draw(
    results: Sequence[Result],
    *,
    title: str | None = None,
    chance: float | None = None,
    trained_iterations: float | None = None,
    baselines: Mapping[str, Sequence[Result]] | None = None,
    difficulty_name: str = "difficulty",
) -> Figure:
    """Two panels with one vertical axis: against iterations (log2, left), and against FLOPs per token (log, right).

    Args:
        results: of a model with a loop, with at least one count; otherwise a ValueError.
        title: above both panels.
        chance: where guessing lands, in the unit of the vertical axis (0 .. 1 for accuracy); a dotted line.
        trained_iterations: count of a call that names none; a vertical mark on the left.
        baselines: results of other models by name; one without a loop is a level line on the left, a point on the
            right. Their difficulties take the colours of `results`; those that `results` lacks are left out.
        difficulty_name: what the difficulty counts, for the legend, e.g. "length".
    """
    from matplotlib.figure import Figure

    counts = sorted({result.iterations for result in results if result.iterations is not None})
    if not counts:
        raise ValueError("nothing to draw: no result has an iteration count; evaluate a model with a loop")
    figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    colors = difficulty_colors(results)
    looks = dict(zip(baselines or {}, zip(cycle(BASELINE_STYLES), cycle(MARKERS)), strict=False))
    for difficulty, line in by_difficulty(results):
        draw_line((left, right), line, colors[difficulty], "-", "o")
    for name, others in (baselines or {}).items():
        for difficulty, line in by_difficulty(others):
            if difficulty in colors:
                draw_line((left, right), line, colors[difficulty], *looks[name])
    dress(left, right, counts, text=is_text(results))
    mark(left, right, chance, trained_iterations)
    add_legend(figure, colors, looks, difficulty_name)
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


def dress(left: Axes, right: Axes, counts: Sequence[int], text: bool) -> None:
    """Axes, ticks and names of both panels."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullLocator, PercentFormatter

    left.set_xscale("log", base=2)
    # many counts would overlap: then the powers of two among them stand for all
    few = counts if len(counts) <= MOST_TICKS else [count for count in counts if count & (count - 1) == 0]
    left.set_xticks(few, [str(count) for count in few])
    left.xaxis.set_minor_locator(NullLocator())
    left.set_xlabel("iterations")
    right.set_xscale("log")
    low, high = right.get_xlim()
    right.xaxis.set_major_locator(LogLocator(subs=(1.0,) if high > 300 * low else (1.0, 2.0, 5.0)))
    right.xaxis.set_minor_locator(NullLocator())
    right.xaxis.set_major_formatter(EngFormatter())
    right.set_xlabel("FLOPs per token")
    left.set_ylabel("bits per byte" if text else "accuracy per scored token")
    if not text:
        left.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    for panel in (left, right):
        panel.grid(True, color="0.9", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)


def mark(left: Axes, right: Axes, chance: float | None, trained_iterations: float | None) -> None:
    """The level of chance on both panels, and the default count on the left one, each named where it stands."""
    if chance is not None:
        for panel in (left, right):
            panel.axhline(chance, color="0.35", linestyle=":", linewidth=1.2)
        right.annotate(
            "chance", (1, chance), xycoords=right.get_yaxis_transform(), xytext=(0, 3), textcoords="offset points",
            ha="right", color="0.35", fontsize=9,
        )  # fmt: skip
    if trained_iterations is not None:
        left.axvline(trained_iterations, color="0.35", linestyle="-", linewidth=0.9)
        left.annotate(
            "default count", (trained_iterations, 1), xycoords=left.get_xaxis_transform(), xytext=(0, 2),
            textcoords="offset points", ha="center", color="0.35", fontsize=9,
        )  # fmt: skip


def add_legend(
    figure: Figure, colors: Mapping[int | None, Any], looks: Mapping[str, tuple[Any, str]], difficulty_name: str
) -> None:
    """One legend under the panels: difficulties by colour, baselines by style and marker; none for one bare line."""
    from matplotlib.lines import Line2D

    names = {"this model" if d is None else f"{difficulty_name} {d}": color for d, color in colors.items()}
    entries = [Line2D([], [], color=color, marker="o", markersize=5, label=name) for name, color in names.items()]
    for name, (style, marker) in looks.items():
        entries.append(Line2D([], [], color="0.3", linestyle=style, marker=marker, markersize=7, label=name))
    if list(colors) != [None] or looks:
        figure.legend(handles=entries, loc="outside lower center", frameon=False, ncols=min(len(entries), 4))
