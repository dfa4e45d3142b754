"""The picture of a comparison: accuracy against FLOPs of a problem, a panel for each difficulty.

Every strategy is a curve in its own knob: one that draws N answers (or waits N times ...) over N, a line for each
iteration count; one without a number of its own over the iterations. Dots are as large as their iterations are many.
Strategies have colours, folders line styles. The band behind the curves is the Pareto envelope, in the colour of the
strategy that owns it there. What asked the exact checker, which nobody has, is dotted and on no envelope.

Where FLOPs are not known, as behind an endpoint, the axis is of tokens. matplotlib is imported when a picture is
drawn, and through its objects only.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mull.inference.measure.plots import DPI, GREY, quiet
from mull.training.comparing.cells import Cell, family_of
from mull.training.comparing.envelope import Best, envelope
from mull.training.comparing.rows import Row, row_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT, COLUMNS = 7.2, 3.9, 3  # inches of a panel, and panels beside each other
STYLES: Sequence[Any] = ("-", "--", "-.", (0, (4, 1, 1, 1, 1, 1)))  # of folders
MARKERS = "osD^vPX"
CEILING = ":"
LETTER, HANDLE, LINE, MOST_COLUMNS = 0.092, 0.75, 0.22, 5  # inches in a legend: a letter, what is beside a text, a line
TITLE_LETTER, TITLE_LINE = 0.115, 0.25  # inches


def draw(cells: Sequence[Cell], difficulty_name: str = "difficulty", title: str | None = None) -> Figure:
    """The picture.

    Args:
        cells: at least one.
        difficulty_name: what a difficulty counts, for the titles of panels.
        title: above the panels.
    """
    from matplotlib.figure import Figure

    rows = [row_of(cell) for cell in cells]
    difficulties = list(dict.fromkeys(row.difficulty for row in rows))
    columns = min(COLUMNS, len(difficulties))
    lines = -(-len(difficulties) // columns)
    width = max(WIDTH, 5.4 * columns)
    figure = Figure(figsize=(width, HEIGHT * lines), dpi=DPI, layout="constrained")
    panels = list(figure.subplots(lines, columns, squeeze=False, sharey=True).flat)
    colors = colors_of(rows)
    folders = dict.fromkeys(row.folder for row in rows)
    looks = {folder: (STYLES[i % len(STYLES)], MARKERS[i % len(MARKERS)]) for i, folder in enumerate(folders)}
    by_tokens = any(row.flops_per_problem is None for row in rows)
    for panel, difficulty in zip(panels, difficulties, strict=False):
        own = [row for row in rows if row.difficulty == difficulty]
        if not by_tokens:
            draw_envelope(panel, [best for best in envelope(cells) if best.difficulty == difficulty], own, colors)
        for curve in curves_of(own):
            draw_curve(panel, curve, colors[family_of(curve[0].strategy)], looks[curve[0].folder], by_tokens)
        dress(panel, by_tokens)
        if difficulty is not None:
            panel.set_title(f"{difficulty_name} {difficulty}", fontsize=10)
    for panel in panels[len(difficulties) :]:
        panel.set_visible(False)
    panels[0].set_ylabel("accuracy")
    height = HEIGHT * lines + LINE * add_legend(figure, rows, colors, looks, by_tokens)
    if title is not None:
        title = textwrap.fill(title, int(width / TITLE_LETTER))
        figure.suptitle(title, fontsize=12, parse_math=False)  # a $ in the name of a folder is a $
        height += TITLE_LINE * (title.count("\n") + 1)
    figure.set_figheight(height)  # what stands around the panels takes nothing from them
    return figure


def colors_of(rows: Sequence[Row]) -> dict[str, Any]:
    """A colour for every family of strategies, in the order in which they were named."""
    from matplotlib import colormaps

    families = list(dict.fromkeys(family_of(row.strategy) for row in rows))
    few = colormaps["tab10" if len(families) <= 10 else "tab20"]
    return {family: few(i % few.N) for i, family in enumerate(families)}


def curves_of(rows: Sequence[Row]) -> list[list[Row]]:
    """The curves of one difficulty: over the first value of a family at one count where several values were measured,
    over the iterations of one strategy otherwise. A row is on one curve."""
    knobs: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        knobs.setdefault((row.folder, family_of(row.strategy)), set()).add(row.strategy)
    curves: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        several = len(knobs[row.folder, family_of(row.strategy)]) > 1
        own = (family_of(row.strategy), row.iterations) if several else (row.strategy,)
        curves.setdefault((row.folder, *own), []).append(row)
    return list(curves.values())


def horizontal(row: Row, by_tokens: bool) -> float:
    """Where a cell stands on the axis of cost, at 1 or more since the axis is logarithmic.

    Args:
        row: the cell.
        by_tokens: the axis is of tokens for a problem; otherwise of FLOPs, and of tokens where FLOPs are not known.
    """
    return max(1.0, row.tokens_per_problem if by_tokens or row.flops_per_problem is None else row.flops_per_problem)


def draw_curve(panel: Axes, curve: Sequence[Row], color: Any, look: tuple[Any, str], by_tokens: bool) -> None:
    """A curve with the intervals of its points; a single point has no line."""
    line = sorted(curve, key=lambda row: horizontal(row, by_tokens))
    x, y = [horizontal(row, by_tokens) for row in line], [row.accuracy for row in line]
    below = [max(0.0, row.accuracy - row.accuracy_low) for row in line]  # 0 may come out a little less
    above = [max(0.0, row.accuracy_high - row.accuracy) for row in line]
    style = CEILING if line[0].ceiling else look[0]
    panel.errorbar(x, y, [below, above], color=color, linestyle="none", elinewidth=0.8, alpha=0.45)
    panel.plot(x, y, color=color, linestyle=style, linewidth=1.5)
    sizes = [size_of(row) for row in line]
    faces = "none" if line[0].ceiling else color
    panel.scatter(x, y, sizes, facecolors=faces, edgecolors=color, marker=look[1], zorder=3)


def size_of(row: Row) -> float:
    """The area of a dot in points: larger where there are more iterations."""
    return 22.0 + 14.0 * math.log2(row.iterations or 1)


def draw_envelope(panel: Axes, best: Sequence[Best], rows: Sequence[Row], colors: Mapping[str, Any]) -> None:
    """The envelope as a staircase, each step in the colour of its owner."""
    dearest = max(row.flops_per_problem or 1.0 for row in rows)
    for place, one in enumerate(best):
        end, color = one.up_to or dearest, colors[family_of(one.strategy)]
        panel.plot([one.flops, end], [one.accuracy] * 2, color=color, linewidth=9, alpha=0.22, solid_capstyle="butt")
        if place + 1 < len(best):
            panel.plot([end, end], [one.accuracy, best[place + 1].accuracy], color=GREY, linewidth=0.8, alpha=0.6)


def dress(panel: Axes, by_tokens: bool) -> None:
    """Axes, ticks and names of a panel."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, PercentFormatter

    panel.set_xscale("log", base=2)
    low, high = panel.get_xlim()
    octaves = math.log2(high / low)
    panel.xaxis.set_major_locator(LogLocator(base=2 ** max(1, math.ceil(octaves / 7))))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"$2^{{{math.log2(value):.0f}}}$"))
    panel.set_xlabel("tokens per problem" if by_tokens else "FLOPs per problem")
    panel.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    quiet(panel)


def add_legend(
    figure: Figure, rows: Sequence[Row], colors: Mapping[str, Any], looks: Mapping[str, Any], by_tokens: bool
) -> int:
    """One legend under the panels: strategies by colour, folders by style, iterations by size, the envelope. Returns
    how many lines it has."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    entries: list[Any] = []
    for family, color in colors.items():
        own = [row for row in rows if family_of(row.strategy) == family]
        names = list(dict.fromkeys(row.strategy for row in own))
        said = family if len(names) > 1 else names[0]
        style: Any = CEILING if own[0].ceiling else "-"
        entries.append(Line2D([], [], color=color, linewidth=2, linestyle=style, label=said))
    for folder, (line, marker) in looks.items() if len(looks) > 1 else ():
        entries.append(Line2D([], [], color=GREY, linestyle=line, marker=marker, markersize=6, label=folder))
    counts = {row.iterations: size_of(row) for row in rows if row.iterations is not None}
    for count, area in sorted(counts.items()) if len(counts) > 1 else ():
        dot: Any = {"linestyle": "none", "marker": MARKERS[0], "markersize": math.sqrt(area)}
        entries.append(Line2D([], [], color=GREY, label=f"{count} iteration{'' if count == 1 else 's'}", **dot))
    if not by_tokens:
        entries.append(Patch(color=GREY, alpha=0.22, linewidth=0, label="best for its FLOPs"))
    columns = columns_of([str(entry.get_label()) for entry in entries], figure.get_figwidth())
    legend = figure.legend(handles=entries, loc="outside lower center", frameon=False, ncols=columns)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return -(-len(entries) // columns)


def columns_of(labels: Sequence[str], width: float) -> int:
    """How many columns a legend can have within a width in inches; it is filled column by column."""
    for columns in range(min(MOST_COLUMNS, len(labels)), 1, -1):
        lines = -(-len(labels) // columns)
        longest = [max(map(len, labels[first : first + lines])) for first in range(0, len(labels), lines)]
        if sum(LETTER * each + HANDLE for each in longest) <= width:
            return columns
    return 1
