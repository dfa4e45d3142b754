"""The picture: what is on its axes, and that it is a PNG. Looks are for eyes; these hold what a reader relies on."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from mull.inference.measure.plots import draw, write_png
from mull.inference.measure.results import Result

COUNTS = (1, 2, 3, 8)


def make_result(iterations: int | None, difficulty: int | None, accuracy: float) -> Result:
    return Result(
        iterations=iterations, difficulty=difficulty, accuracy=accuracy, accuracy_low=accuracy - 0.02,
        accuracy_high=accuracy + 0.01, exact_match=None, exact_match_low=None, exact_match_high=None, loss=1.0,
        loss_low=0.9, loss_high=1.2, bits_per_byte=None, examples=9, flops_per_token=1e5 + 2e5 * (iterations or 1),
        seconds=1.0,
    )  # fmt: skip


RESULTS = [make_result(count, d, 1 - 1 / (1 + count) - d / 1000) for d in (8, 64) for count in reversed(COUNTS)]


def lines(figure: Figure, panel: int) -> list[tuple[list[float], list[float]]]:
    """Data of the lines with markers on a panel."""
    found = [line for line in figure.axes[panel].lines if line.get_marker() == "o"]
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in found]  # type: ignore[arg-type]


def test_both_panels_show_every_result_in_order() -> None:
    figure = draw(RESULTS)
    values = [[1 - 1 / (1 + count) - d / 1000 for count in COUNTS] for d in (8, 64)]
    assert lines(figure, 0) == [(list(COUNTS), values[0]), (list(COUNTS), values[1])]
    assert lines(figure, 1) == [([1e5 + 2e5 * count for count in COUNTS], y) for y in values]
    left, right = figure.axes
    assert (left.get_xscale(), right.get_xscale()) == ("log", "log")
    assert [label.get_text() for label in left.get_xticklabels()] == ["1", "2", "3", "8"]
    assert (left.get_xlabel(), right.get_xlabel()) == ("iterations", "FLOPs per token")
    assert left.get_ylabel() == "accuracy per scored token"


def test_bands_are_the_intervals() -> None:
    (band, _) = draw(RESULTS).axes[0].collections
    heights = np.asarray(band.get_paths()[0].vertices)[:, 1]
    assert min(heights) == pytest.approx(0.5 - 0.008 - 0.02)
    assert max(heights) == pytest.approx(1 - 1 / 9 - 0.008 + 0.01)


def test_difficulties_are_told_apart_in_the_legend_by_colour() -> None:
    figure = draw(RESULTS, difficulty_name="length")
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["length 8", "length 64", "95 % interval"]
    colors = [to_rgb(handle.get_color()) for handle in legend.legend_handles[:2]]  # type: ignore[union-attr]
    assert colors == [to_rgb(line.get_color()) for line in figure.axes[0].lines]
    brightness = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in colors]
    assert brightness[0] - brightness[1] > 0.3  # the harder one is darker, also in grey


def test_chance_and_trained_depth_are_marked() -> None:
    plain, marked = draw(RESULTS), draw(RESULTS, chance=0.25, trained_iterations=5.5, title="a title")
    assert [len(axes.lines) for axes in marked.axes] == [len(plain.axes[0].lines) + 2, len(plain.axes[1].lines) + 1]
    assert [text.get_text() for text in marked.legends[0].get_texts()][2:] == [
        "default count",
        "chance",
        "95 % interval",
    ]
    assert any(set(line.get_xdata()) == {5.5} for line in marked.axes[0].lines)  # type: ignore[arg-type]
    assert all(any(set(line.get_ydata()) == {0.25} for line in axes.lines) for axes in marked.axes)  # type: ignore[arg-type]


def test_baselines_are_levels_on_the_left_and_points_on_the_right() -> None:
    others = {
        "transformer": [make_result(None, 8, 0.7), make_result(None, 999, 0.1)],  # 999 is no difficulty of this model
        "another loop": [make_result(count, 64, 0.3) for count in (1, 4)],
    }
    plain, figure = draw(RESULTS), draw(RESULTS, baselines=others)
    left, right = (list(axes.lines[len(plain.axes[0].lines) :]) for axes in figure.axes)
    assert [list(np.asarray(line.get_ydata())) for line in left] == [[0.7, 0.7], [0.3, 0.3]]
    assert [(list(np.asarray(line.get_xdata())), list(np.asarray(line.get_ydata()))) for line in right] == [
        ([3e5], [0.7]),
        ([3e5, 9e5], [0.3, 0.3]),
    ]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["difficulty 8", "difficulty 64", "transformer", "another loop", "95 % interval"]


def test_text_is_drawn_in_bits_per_byte() -> None:
    results = [replace(make_result(count, None, 0.5), bits_per_byte=2.0 / count) for count in COUNTS]
    figure = draw(results)
    assert figure.axes[0].get_ylabel() == "bits per byte"
    assert lines(figure, 0) == [(list(COUNTS), [2.0 / count for count in COUNTS])]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["this model", "95 % interval"]


def test_what_guessing_gives_is_a_dotted_line_for_each_difficulty() -> None:
    """Guards the baseline: without one, 55 % of two answers looks like something."""
    figure = draw([replace(result, guess=0.5 if result.difficulty == 8 else 0.6) for result in RESULTS])
    for panel in figure.axes:
        dotted = [line for line in panel.lines if line.get_linestyle() == ":"]
        assert [set(line.get_ydata()) for line in dotted] == [{0.5}, {0.6}]  # type: ignore[arg-type]
        assert [line.get_color() for line in dotted] == [line.get_color() for line in panel.lines[:2]]
    assert "always the most frequent answer" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_a_level_that_would_flatten_the_lines_is_told_and_not_drawn() -> None:
    """Guards the picture of text: 5 bits of bare frequencies above lines from 1.7 to 2.0 leave nothing to see."""
    results = [replace(make_result(count, None, 0.5), bits_per_byte=1.7 + 0.3 / count, guess=4.91) for count in COUNTS]
    figure = draw(results)
    assert not [line for line in figure.axes[0].lines if line.get_linestyle() == ":"]
    assert figure.axes[0].get_ylim()[1] < 3
    assert "frequencies of tokens alone: 4.910, not drawn" in [t.get_text() for t in figure.legends[0].get_texts()]
    near = draw([replace(result, guess=2.1) for result in results])
    assert [line for line in near.axes[0].lines if line.get_linestyle() == ":"]


def test_differences_have_a_panel_with_their_paired_bands() -> None:
    """Guards against overlapping bands of single counts that hide a sure gain: the third panel is of differences."""
    results = [
        result if result.iterations == 3 else replace(
            result, reference=3, difference=result.accuracy - 0.7, difference_low=result.accuracy - 0.705,
            difference_high=result.accuracy - 0.69,
        ) for result in RESULTS
    ]  # fmt: skip
    left, right, panel = draw(results).axes
    assert lines(panel.figure, 0) == lines(draw(RESULTS), 0)  # type: ignore[arg-type]
    ((counts, values), _) = lines(panel.figure, 2)  # type: ignore[arg-type]
    own = {result.iterations: result.difference or 0.0 for result in results if result.difficulty == 8}
    assert counts == list(COUNTS) and values == [own[count] for count in COUNTS] and own[3] == 0
    heights = np.asarray(panel.collections[0].get_paths()[0].vertices)[:, 1]
    assert min(heights) == pytest.approx(own[1] - 0.005) and max(heights) == pytest.approx(own[8] + 0.01)
    assert panel.get_title() == "difference to 3 iterations, same examples"
    assert left.get_shared_y_axes().joined(left, right) and not left.get_shared_y_axes().joined(left, panel)


def test_many_counts_are_labelled_at_powers_of_two() -> None:
    results = [make_result(count, 8, 0.5) for count in range(1, 33)]
    labels = [label.get_text() for label in draw(results).axes[0].get_xticklabels()]
    assert labels == ["1", "2", "4", "8", "16", "32"]


def test_the_file_is_a_png_of_the_stated_size(tmp_path: Path) -> None:
    """The size stands in the header, bytes 16-23; a result without an interval or a number must not stop it."""
    results = [*RESULTS, replace(make_result(32, 8, math.nan), bits_per_byte=None)]
    write_png(draw(results, chance=0.1), tmp_path / "plot.png")
    data = (tmp_path / "plot.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert (int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")) == (1500, 660)


def test_nothing_to_draw_is_said_and_nothing_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to draw: no result has an iteration count"):
        write_png(draw([make_result(None, 8, 0.5)]), tmp_path / "plot.png")
    assert not list(tmp_path.iterdir())


def test_a_title_is_no_formula(tmp_path: Path) -> None:
    r"""A folder may be called `$\alpha_{$`; read as a formula, that ends the picture behind a whole evaluation."""
    write_png(draw(RESULTS, title=r"$\alpha_{$ x"), tmp_path / "plot.png")
    assert draw(RESULTS, title=r"$\alpha_{$ x").get_suptitle() == r"$\alpha_{$ x"
