"""The area under the curve against counted pairs, and its interval against many samples."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mull.inference.measure.settling import auc, settling


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=30))
def test_the_area_is_the_share_of_pairs_in_order(items: list[tuple[int, bool]]) -> None:
    """Guards ties and the direction, pair by pair; the interval holds the estimate."""
    pairs = [(a, b) for a, yes in items if yes for b, other in items if not other]
    found = auc(np.array([score for score, _ in items]), np.array([yes for _, yes in items]))
    if not pairs:
        assert found is None
        return
    assert found is not None
    assert found[0] == pytest.approx(sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs))
    assert 0 <= found[1] <= found[0] <= found[2] <= 1


def test_a_state_that_has_left_the_numbers_is_the_least_settled() -> None:
    """Guards the order: what diverged and is wrong speaks for the residual, not against it."""
    found = settling([0.01, 0.02, float("nan"), float("inf")], [True, True, False, False])
    assert found.auc == 1.0 and found.settled == 0.5


def test_the_interval_covers() -> None:
    """Two normal distributions one deviation apart: the area is 0.760; 95 % intervals of 400 samples hold it 380 times,
    give or take five standard errors (22)."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        yes = rng.random(80) < 0.4
        found = auc(rng.normal(size=80) + yes, yes)
        assert found is not None
        covered += found[1] <= 0.7602 <= found[2]
    assert 358 <= covered <= 400


def test_perfect_order_is_not_certainty() -> None:
    """3 right and 50 wrong examples in perfect order: the bound is that of three trials, 0.292."""
    scores = np.arange(53.0)
    found = auc(scores, scores >= 50)
    assert found is not None and found[0] == found[2] == 1 and found[1] == pytest.approx(0.025 ** (1 / 3))
    assert auc(np.zeros(9), np.arange(9) < 4) == (0.5, 0.0, 1.0)  # nothing but ties says nothing
    reverse = auc(-scores, scores >= 50)
    assert reverse is not None and reverse[0] == reverse[1] == 0 and reverse[2] == pytest.approx(1 - 0.025 ** (1 / 3))


def test_small_residuals_stand_for_right_answers() -> None:
    """Guards the sign, the mean and the share below the threshold."""
    told = settling([0.01, 0.02, 0.5, 0.07], [True, True, False, False])
    assert told.residual == pytest.approx(0.15) and told.settled == 0.5 and told.auc == 1
    assert told.settled_low < 0.5 < told.settled_high
    assert settling([0.01, 0.02], [True, True])[4:] == settling([0.01, 0.5], None)[4:] == (None, None, None)
