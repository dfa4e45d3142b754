"""What doubling the iterations is worth, where the truth is known exactly."""

import runpy
from collections.abc import Callable
from itertools import pairwise
from math import log2
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mull.inference.measure.intervals import clustered_mean
from mull.training.comparing.bootstrap import interval, weights
from mull.training.comparing.cells import Cell
from mull.training.comparing.crossing import along, first_reached
from mull.training.comparing.exchange import Exchange, exchange

Make = Callable[..., Cell]


def sampled(make: Make, counts: tuple[int, ...], samples: tuple[int, ...], **options: Any) -> list[Cell]:
    """Chains, and votes among N of them, whose accuracy and FLOPs are functions of iterations x N."""
    found = []
    for r in counts:
        for n in (1, *samples):
            name = "chain" if n == 1 else f"majority:{n}"
            own = {"samples": None if n == 1 else n, "tokens": 8 * n, "flops": 100.0 * r * n}
            found.append(make(name, r, 0.1 + 0.15 * log2(r * n), **own, **options))
    return found


@pytest.mark.parametrize("counts", [(1, 2, 4), (1, 4)])
def test_twice_the_iterations_are_twice_the_samples(make: Make, counts: tuple[int, ...]) -> None:
    """A curve that is a function of iterations x samples: the rate is 2, at equal FLOPs, in every draw of problems, as
    the same problems are right on both ways; also where only every second doubling was measured."""
    rates = exchange(sampled(make, counts, (2, 4, 8)))
    assert [(each.iterations, each.more_iterations) for each in rates] == list(pairwise(counts))
    for each in rates:
        assert (each.base, each.currency, each.by) == ("chain", "samples", ("majority:2", "majority:4", "majority:8"))
        assert each.amount == pytest.approx(each.more_iterations / each.iterations)
        assert [each.factor, each.factor_low, each.factor_high] == pytest.approx([2, 2, 2])
        assert [each.cost, each.cost_low, each.cost_high] == pytest.approx([1, 1, 1])
        assert each.reason is None and each.without_gain == each.out_of_reach == 0


def test_twice_the_iterations_are_three_times_the_tokens(make: Make) -> None:
    """The same for strategies that write more, of which two lie on either side of the crossing."""
    cells = []
    for r in (1, 2):
        for name, tokens in (("direct", 4), ("draft", 8), ("chain", 16)):
            cells.append(
                make(name, r, 0.2 + 0.3 * log2(r) + 0.3 * log2(tokens / 4) / log2(3), tokens=tokens, flops=None)
            )
    cells = [cell for cell in cells if cell.place.iterations == 1 or cell.place.strategy == "direct"]
    (rate,) = exchange(cells)
    assert (rate.base, rate.currency, rate.by) == ("direct", "tokens", ("draft", "chain"))
    assert rate.factor == pytest.approx(3, rel=0.02)  # accuracies are multiples of 1/200
    assert rate.factor_low is not None and rate.factor_high is not None
    assert rate.factor_low < 3 < rate.factor_high  # no cell lies on the crossing: problems between them matter
    assert rate.cost is None


def test_no_crossing_is_null_with_a_reason(make: Make) -> None:
    """Nothing to buy where iterating gains nothing, and no price where nothing measured is as accurate."""
    flat = [make("chain", r, 0.4) for r in (1, 2)] + [make("majority:4", 1, 0.6, samples=4)]
    (rate,) = exchange(flat)
    assert rate.factor is rate.amount is rate.cost is None
    assert (rate.factor_low, rate.factor_high, rate.without_gain) == (1, 1, 1)
    assert rate.reason == "no gain: 40.0 % at 1, 40.0 % at 2 iterations"
    steep = [make("chain", 1, 0.2), make("chain", 2, 0.9), make("majority:4", 1, 0.5, samples=4)]
    (rate,) = exchange(steep)
    assert rate.factor is rate.factor_low is rate.factor_high is None and rate.out_of_reach == 1
    assert rate.reason == "out of reach: majority:4 is at 50.0 %, not at 90.0 %"
    near = [make("chain", 1, 0.3), make("chain", 2, 0.5), make("majority:4", 1, 0.5, samples=4)]
    (rate,) = exchange(near)
    assert rate.factor == 4 and rate.reason is None


def test_what_makes_a_curve(make: Make) -> None:
    """Each base has the votes among its own style; a family measured with one sample begins there; what asks the
    checker is for sale to nobody; folders and models without a loop do not mix."""
    cells = sampled(make, (1, 2), (2, 4)) + [make("direct", r, 0.1 * r, tokens=2) for r in (1, 2)]
    cells += [make("best_of_n:4,scorer=oracle", r, 0.9, samples=4, ceiling=True) for r in (1, 2)]
    cells += [make("majority:4,style=direct", r, 0.3, samples=4, style="direct") for r in (1, 2)]
    cells += [make("chain", None, 0.5, folder="twin"), make("majority:4", None, 0.6, samples=4, folder="twin")]
    made = {(each.base, each.currency, each.by) for each in exchange(cells)}
    assert made == {
        ("chain", "samples", ("majority:2", "majority:4")),
        ("direct", "samples", ("majority:4,style=direct",)),
        ("direct", "tokens", ("chain",)),
    }
    cells += [make("majority:1", r, 0.2 * r, samples=1) for r in (1, 2)]
    made = {(each.base, each.currency) for each in exchange(cells) if "majority:4" in each.by}
    assert made == {("majority:1", "samples")}


def test_difficulties_together(make: Make) -> None:
    """Where there are several, also one rate of all of them; a strategy that lacks a difficulty is not part of it."""
    cells = sampled(make, (1, 2), (2, 4), difficulty=3) + sampled(make, (1, 2), (2, 4), difficulty=5, problems=100)
    cells.append(make("majority:16", 1, 0.9, samples=16, difficulty=3))
    found: dict[int | None, Exchange] = {each.difficulty: each for each in exchange(cells)}
    assert list(found) == [3, 5, None]
    assert found[3].by == ("majority:2", "majority:4", "majority:16") and found[None].by == ("majority:2", "majority:4")
    assert found[None].factor == pytest.approx(2) and found[None].accuracy == pytest.approx(0.1)


def test_first_reached_is_the_slow_search() -> None:
    """The crossing of many draws at once, against one segment after another; and costs along the same segments."""
    rng = np.random.default_rng(3)
    x = np.exp2(rng.uniform(0, 6, (300, 5)))
    x[:, 0] = 1.0
    y, height = rng.integers(0, 9, (300, 5)) / 8, rng.integers(0, 9, 300) / 8
    found = first_reached(x, y, height)
    for row in range(len(x)):
        points = sorted(zip(np.log2(x[row]), y[row], strict=True), key=lambda point: point[0])
        expected = np.inf if height[row] > points[0][1] else 1.0
        for (a, low), (b, high) in pairwise(points):
            if expected == np.inf and low < height[row] <= high:
                expected = 2 ** (a + (height[row] - low) / (high - low) * (b - a))
        assert found[row] == pytest.approx(expected)
    cost = along(x, 7 * x**2, found)
    assert cost == pytest.approx(7 * found**2)


def test_bootstrap_is_the_closed_form() -> None:
    """Whole problems are drawn, each difficulty as often as it has problems; a mean has the known interval."""
    rng = np.random.default_rng(1)
    values = np.concatenate([rng.normal(0, 1, 150), rng.normal(0, 1, 50)])
    drawn = weights([150, 50], draws=4000, seed=5)
    assert drawn.shape == (4001, 200) and np.allclose(drawn.sum(axis=1), 1) and np.allclose(drawn[0], 1 / 200)
    assert np.allclose(drawn[:, :150].sum(axis=1), 0.75)
    expected = clustered_mean(values.tolist(), [1] * 200)
    assert expected is not None
    assert interval(drawn[1:] @ values) == pytest.approx(expected, abs=0.015)  # a tenth of its half width
    assert interval(np.array([1.0] * 900 + [np.inf] * 100)) == (1.0, np.inf)


def test_intervals_hold_a_known_rate() -> None:
    """Guards what the intervals promise, where cells answer each with chance of its own: of 30 comparisons of
    benchmarks/exchange.py, which has the long form, at least 26 hold the rate, and none by being open."""
    simulation = runpy.run_path(str(Path(__file__).parents[3] / "benchmarks" / "exchange.py"))
    found = [simulation["rate_of"](simulation["simulated"](seed, 300, 2.0)) for seed in range(30)]
    assert sum(simulation["holds"](each, 2.0) for each in found) >= 26
    assert all(each.factor_high is not None and each.factor_high < 6 for each in found)


def test_one_strategy_in_two_spellings_is_one_curve(make: Make) -> None:
    """Guards curves over N: how an option is written does not say what is drawn."""
    cells = [make("chain", r, 0.1 * r) for r in (1, 2)]
    cells += [make("majority:2", 1, 0.15, samples=2), make("majority,n=4", 1, 0.3, samples=4)]
    (rate,) = exchange(cells)
    assert rate.by == ("majority:2", "majority,n=4") and rate.reason is None


def test_what_thinks_at_a_depth_of_its_own_buys_nothing_at_another(make: Make) -> None:
    """Guards the rate: 8 iterations that stand under 1 would sell as tokens what they are in iterations."""
    cells = [make("direct", r, 0.1 * r, tokens=2) for r in (1, 2)]
    cells += [make(f"budget_forcing:0,most={most}", 1, 0.9, tokens=9) for most in (8, 0)]
    (rate,) = exchange(cells)
    assert rate.by == ("budget_forcing:0,most=0",)
