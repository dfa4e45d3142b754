"""The Pareto envelope against the slow definition, and who owns it."""

from collections.abc import Callable

import numpy as np
import pytest

from mull.training.comparing.cells import Cell
from mull.training.comparing.envelope import envelope, owners
from mull.training.comparing.rows import row_of

Make = Callable[..., Cell]


def test_envelope_is_what_nothing_dominates(make: Make) -> None:
    """Random cells, with ties in both directions: what nothing cheaper is as accurate as."""
    rng = np.random.default_rng(0)
    cells = [
        make(
            f"s{i}",
            1,
            int(rng.integers(0, 11)) / 10,
            flops=float(rng.integers(1, 20)),
            difficulty=int(i % 2),
            problems=10,
        )
        for i in range(60)
    ]
    found = envelope(cells)
    for difficulty in (0, 1):
        points = [
            (row.flops_per_problem or 0, row.accuracy) for row in map(row_of, cells) if row.difficulty == difficulty
        ]
        slow = {(f, a) for f, a in points if not any((g <= f and b >= a) and (g, b) != (f, a) for g, b in points)}
        own = [best for best in found if best.difficulty == difficulty]
        assert [(best.flops, best.accuracy) for best in own] == sorted(slow)
        assert [best.up_to for best in own] == [*(best.flops for best in own[1:]), None]


def test_gain_is_paired(make: Make) -> None:
    """The same problems are right below and above a step, so that its interval is far narrower than the rows' own."""
    first, second = envelope([make("chain", 1, 0.5, flops=1), make("chain", 2, 0.55, flops=2)])
    assert first.gain is None and second.gain == pytest.approx(0.05)
    assert second.gain_low is not None and second.gain_high is not None and second.gain_low > 0
    assert second.gain_high - second.gain_low < 0.08  # two rows of 200 apart: 0.14 each


def test_owners_share_the_axis(make: Make) -> None:
    """Octaves of FLOPs: two of them direct's, one of chain's; what nobody has and what has no FLOPs own nothing."""
    cells = [make("direct", 1, 0.2, flops=8, difficulty=2), make("direct", 2, 0.3, flops=16, difficulty=2)]
    cells += [make("chain", 1, 0.5, flops=32, difficulty=2), make("majority:4", 1, 0.4, flops=64, difficulty=2)]
    cells += [make("best_of_n:4,scorer=oracle", 1, 0.9, flops=1, difficulty=2, ceiling=True)]
    cells += [make("chain", None, 0.9, flops=None, difficulty=2, folder="endpoint")]
    assert [(each.strategy, round(each.share, 6)) for each in owners(cells)] == [
        ("direct", round(2 / 3, 6)),
        ("chain", round(1 / 3, 6)),
    ]
    (alone,) = owners([make("chain", 1, 0.5)])
    assert alone.share == 1 and owners([make("chain", 1, 0.5, flops=None)]) == []
