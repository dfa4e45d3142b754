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


def test_what_occurs_several_times_is_one_witness() -> None:
    """Guards the interval over all counts: the same examples three times over tell no more than once, and an example
    that is right at one count and wrong at another is one example still."""
    rng = np.random.default_rng(1)
    yes = rng.random(60) < 0.5
    scores = rng.normal(size=60) + yes
    once = auc(scores, yes)
    thrice = auc(np.tile(scores, 3), np.tile(yes, 3), np.tile(np.arange(60), 3))
    naive = auc(np.tile(scores, 3), np.tile(yes, 3))
    assert once is not None and thrice == pytest.approx(once, rel=1e-9)
    assert naive is not None and naive[2] - naive[1] < 0.65 * (once[2] - once[1])  # 1 / sqrt 3 if taken for independent


def test_the_interval_over_several_counts_covers() -> None:
    """Examples as hard and as calm as they are at three counts each, some of them right at a few: 95 % intervals of 400
    samples hold the area of a hundred thousand 380 times, give or take five standard errors (22); DeLong's do not."""

    def sample(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        hard, calmness = rng.normal(size=(2, n))
        yes = 0.5 * rng.normal(size=(3, n)) + np.array([[-0.5], [0.0], [0.5]]) > hard
        calm = 0.5 * rng.normal(size=(3, n)) + yes + calmness
        return calm.ravel(), yes.ravel(), np.tile(np.arange(n), 3)

    truth = auc(*sample(np.random.default_rng(7), 30_000))
    assert truth is not None
    rng, covered, naive = np.random.default_rng(0), 0, 0
    for _ in range(400):
        calm, yes, of = sample(rng, 80)
        found, alone = auc(calm, yes, of), auc(calm, yes)
        assert found is not None and alone is not None
        covered += found[1] <= truth[0] <= found[2]
        naive += alone[1] <= truth[0] <= alone[2]
    assert 358 <= covered <= 400 and naive < 358, (covered, naive)


def test_one_of_a_kind_says_nothing_of_its_spread() -> None:
    """Guards the division: all that is right is of one example, however often."""
    found = auc(np.array([3.0, 1.0, 0.0, 2.0]), np.array([True, True, False, False]), np.array([0, 0, 1, 2]))
    assert found == (0.75, 0.0, 1.0)


def test_the_variance_is_the_formula() -> None:
    """The interval against the head of the file, read aloud; each example alone it is DeLong's, with n - 1."""
    rng = np.random.default_rng(3)
    of = np.repeat(np.arange(12), 3)
    yes = rng.random(36) < 0.5
    scores = rng.normal(size=36) + yes + rng.normal(size=12)[of]
    m, n = yes.sum(), (~yes).sum()
    beaten = {i: np.mean(scores[i] > scores[~yes]) for i in np.flatnonzero(yes)}
    under = {j: np.mean(scores[yes] > scores[j]) for j in np.flatnonzero(~yes)}
    area = np.mean(list(beaten.values()))
    p = [sum(beaten[i] - area for i in beaten if of[i] == example) for example in range(12)]
    q = [sum(under[j] - area for j in under if of[j] == example) for example in range(12)]
    right, wrong = len(set(of[yes])), len(set(of[~yes]))
    variance = right / (right - 1) * sum(x * x for x in p) / m**2 + wrong / (wrong - 1) * sum(x * x for x in q) / n**2
    variance += 2 * 12 / 11 * sum(x * y for x, y in zip(p, q, strict=True)) / (m * n)
    assert half_of_logit(auc(scores, yes, of)) == pytest.approx(
        1.959964 * variance**0.5 / (area * (1 - area)), rel=1e-5
    )
    delong = np.var(list(beaten.values()), ddof=1) / m + np.var(list(under.values()), ddof=1) / n
    assert half_of_logit(auc(scores, yes)) == pytest.approx(1.959964 * delong**0.5 / (area * (1 - area)), rel=1e-5)


def half_of_logit(found: tuple[float, float, float] | None) -> float:
    """Half of an interval's width on the logit scale."""
    assert found is not None
    return float(np.log(found[2] / (1 - found[2])) - np.log(found[1] / (1 - found[1]))) / 2
