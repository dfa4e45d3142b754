"""The picture and the tables: every row is in them, and what they say is what was measured."""

from collections.abc import Callable
from io import StringIO

import pytest
from matplotlib.collections import PathCollection
from rich.console import Console

from mull.inference.measure.plots import png_of
from mull.training.comparing.cells import Cell
from mull.training.comparing.envelope import envelope, owners
from mull.training.comparing.exchange import exchange
from mull.training.comparing.plot import curves_of, draw
from mull.training.comparing.rows import row_of
from mull.training.comparing.table import exchange_table, metric_table, owners_table, table_of

Make = Callable[..., Cell]


@pytest.fixture
def cells(make: Make) -> list[Cell]:
    found = []
    for difficulty in (3, 5):
        for r in (1, 4):
            found.append(make("chain", r, 0.2 + 0.1 * r, flops=50.0 * r, difficulty=difficulty))
            for n in (2, 8):
                flops, tokens = 50.0 * r * n, 8 * n
                own = {"samples": n, "flops": flops, "tokens": tokens, "difficulty": difficulty}
                found.append(make(f"majority:{n}", r, 0.25 + 0.1 * r + 0.02 * n, **own))
        found.append(make("chain", None, 0.6, flops=400.0, difficulty=difficulty, folder="[/twin] $x$"))
        found.append(make("best_of_n:8,scorer=oracle", 1, 0.9, samples=8, ceiling=True, difficulty=difficulty))
    return found


def test_curves_are_in_the_own_knob(cells: list[Cell]) -> None:
    """A family over its number at each count, a strategy without one over the counts; every row on one curve."""
    rows = [row_of(cell) for cell in cells if cell.place.difficulty == 3]
    curves = [[(row.strategy, row.iterations) for row in curve] for curve in curves_of(rows)]
    assert [("chain", 1), ("chain", 4)] in curves and [("majority:2", 4), ("majority:8", 4)] in curves
    assert sorted(str(row) for curve in curves for row in curve) == sorted(
        str((row.strategy, row.iterations)) for row in rows
    )


def test_picture(cells: list[Cell]) -> None:
    """A panel for each difficulty, with as many dots as rows and a step of the envelope for each best row; names are
    text, whatever is in them; without FLOPs the axis is of tokens and there is no envelope."""
    figure = draw(cells, "length", "a $ in a title")
    panels = [panel for panel in figure.axes if panel.get_visible()]
    assert [panel.get_title() for panel in panels] == ["length 3", "length 5"]
    for panel, difficulty in zip(panels, (3, 5), strict=True):
        drawn = sum(len(dots.get_offsets()) for dots in panel.collections if isinstance(dots, PathCollection))
        assert drawn == sum(cell.place.difficulty == difficulty for cell in cells)
        best = [each for each in envelope(cells) if each.difficulty == difficulty]
        assert sum(line.get_linewidth() == 9 for line in panel.lines) == len(best)
        assert panel.get_xlabel() == "FLOPs per problem"
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {"chain", "majority:N", "best_of_n:8,scorer=oracle", "[/twin] $x$", "4 iterations"} <= set(texts)
    assert png_of(figure).startswith(b"\x89PNG")


def test_picture_without_flops(make: Make) -> None:
    (panel,) = draw([make("chain", None, 0.5, flops=None), make("draft", None, 0.4, flops=None, tokens=3)]).axes
    assert panel.get_xlabel() == "tokens per problem" and not any(line.get_linewidth() == 9 for line in panel.lines)


@pytest.mark.parametrize("difficulties", [1, 2])
@pytest.mark.parametrize("more", [0, 12])
def test_title_and_legend_are_within_the_picture_and_leave_room_for_panels(
    make: Make, difficulties: int, more: int
) -> None:
    """However long the names are that stand in them, and however many."""
    names = ["direct", "chain", "draft", "beam:8,width=4,scorer=process,aggregation=product", "budget_forcing:1,cap=64"]
    names += [f"beam:{n},width={n},scorer=log_probability,style=draft" for n in range(2, 2 + more)]
    cells = [make(name, r, difficulty=d) for name in names for r in (1, 4, 16) for d in range(difficulties)]
    figure = draw(cells, title=", ".join(f"checkpoints/reasoner-{n}" for n in range(2 + more)))
    png_of(figure)  # which lays it out
    (title,), size = [text for text in figure.texts if "reasoner" in text.get_text()], figure.bbox
    for box in (figure.legends[0].get_window_extent(), title.get_window_extent()):
        assert size.x0 <= box.x0 and box.x1 <= size.x1 and size.y0 <= box.y0 and box.y1 <= size.y1
    for panel in figure.axes:
        assert panel.get_window_extent().height / figure.dpi > 2.5


def test_tables(cells: list[Cell]) -> None:
    """Stars stand where the envelope is, rates and owners are told, and odd names are no markup."""
    console = Console(file=StringIO(), width=200)
    best = envelope(cells)
    console.print(table_of([row_of(cell) for cell in cells], best, "[/x]"))
    for table in (exchange_table(exchange(cells)), owners_table(owners(cells))):
        assert table is not None
        console.print(table)
    assert exchange_table([]) is owners_table([]) is metric_table([]) is None
    text = console.file.getvalue()  # type: ignore[attr-defined]
    # one star is in the caption
    assert text.count(" * ") == len(best) + 1 and text.count("ceiling") == 2 and "[/twin] $x$" not in text
    assert "samples of majority:N" in text and "chain, 1 to 4" in text and "twin] $x$" in text
