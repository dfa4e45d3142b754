"""Intervals against numbers worked out by hand, and the properties they were chosen for."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mull.inference.measure.intervals import clustered_mean, clustered_share, paired_share, wilson


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (8, 10, 0.4902, 0.9433),  # published tables of Wilson's interval
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (81, 263, 0.2553, 0.3662),  # Newcombe (1998), table I
    ],
)
def test_wilson(successes: int, n: int, low: float, high: float) -> None:
    assert wilson(successes, n) == pytest.approx((low, high), abs=6e-5)


def test_nothing_right_is_nought_and_everything_right_is_one() -> None:
    """Guards the ends that everybody reads, whatever the number of trials: 0 and 1, and no 2.8e-17 in place of 0."""
    for n in range(1, 400):
        assert wilson(0, n).low == 0.0 < wilson(0, n).high < 1 and wilson(n, n).high == 1.0 > wilson(n, n).low > 0


def test_share_of_single_tokens_is_agresti_and_coulls() -> None:
    """8 of 10: n' = 10 + 3.8415 = 13.8415, p' = (8 + 1.9207) / n' = 0.71674, half 1.96 sqrt(p' (1 - p') / n')."""
    found = clustered_share([1] * 8 + [0] * 2, [1] * 10)
    assert found == pytest.approx((0.71674 - 0.23737, 0.71674 + 0.23737), abs=2e-5)


def test_share_of_clusters_worked_out_by_hand() -> None:
    """Two examples of equal size, shares 1/2 and 1: N = 2 + z^2 = 5.8415, centre (1.5 + 1.9207) / N = 0.58559; spread
    (0.5 - c)^2 + (1 - c)^2 + 1.9207 (c^2 + (1 - c)^2) = 0.00733 + 0.17174 + 0.98850 = 1.16757; half z sqrt / N."""
    assert clustered_share([2, 4], [4, 4]) == pytest.approx((0.58559 - 0.36255, 0.58559 + 0.36255), abs=1e-4)


def test_share_does_not_shrink_to_nothing_at_certainty() -> None:
    """100 examples, all right: N = 103.8415, centre 101.9207 / N = 0.98150, spread 100 (1 - c)^2 + 1.9207 (c^2 +
    (1 - c)^2) = 1.88518, half z sqrt(spread) / N = 0.02592; 64 tokens an example change nothing."""
    for size in (1, 64):
        assert clustered_share([size] * 100, [size] * 100) == pytest.approx((0.95559, 1.0), abs=2e-5)


def test_correlated_tokens_give_a_wider_interval_than_independent_ones() -> None:
    mixed, all_or_nothing = clustered_share([16] * 200, [32] * 200), clustered_share([0, 32] * 100, [32] * 200)
    assert all_or_nothing.high - all_or_nothing.low > 5 * (mixed.high - mixed.low)
    assert all_or_nothing.high - all_or_nothing.low == pytest.approx(2 * 1.96 * (0.25 / 200) ** 0.5, rel=0.03)


@given(st.lists(st.tuples(st.integers(1, 50), st.floats(0, 1)), min_size=1, max_size=30))
def test_share_contains_the_share(examples: list[tuple[int, float]]) -> None:
    sizes = [size for size, _ in examples]
    right = [round(size * share) for size, share in examples]
    low, high = clustered_share(right, sizes)
    assert 0 <= low <= sum(right) / sum(sizes) + 1e-12
    assert sum(right) / sum(sizes) - 1e-12 <= high <= 1


def test_coverage_of_the_share() -> None:
    """300 samples of 60 examples whose shares are Beta(2, 1) draws (mean 2/3). Of 300 intervals that cover with
    probability 0.95, fewer than 270 do with probability 2e-4 (the seed is fixed). Wilson's interval over the 1,200
    tokens, as if they were independent, covers far less often."""
    rng, covered, naively = random.Random(0), 0, 0
    for _ in range(300):
        right = [sum(rng.random() < share for _ in range(20)) for share in (rng.betavariate(2, 1) for _ in range(60))]
        low, high = clustered_share(right, [20] * 60)
        covered += low <= 2 / 3 <= high
        naive = wilson(sum(right), 20 * 60)
        naively += naive.low <= 2 / 3 <= naive.high
    assert covered >= 270
    assert naively < 240


def test_mean_of_clusters_worked_out_by_hand() -> None:
    """Sums 2, 4, 9 over sizes 1, 2, 3: mean 15/6, residuals -0.5, -1, 1.5, squares 3.5; half z sqrt(3.5 * 3/2) / 6."""
    half = 1.959964 * (3.5 * 1.5) ** 0.5 / 6
    assert clustered_mean([2, 4, 9], [1, 2, 3]) == pytest.approx((2.5 - half, 2.5 + half), abs=1e-5)
    assert clustered_mean([2.0], [1]) is None


def paired_samples(n: int, rng: random.Random) -> tuple[list[int], list[int], list[int]]:
    """Examples of 8 or 24 tokens: right ones at two counts, and sizes. What makes an example hard is hard at both."""
    sizes = [rng.choice((8, 24)) for _ in range(n)]
    ease = [rng.betavariate(1, 1) for _ in range(n)]
    first = [sum(rng.random() < e for _ in range(size)) for e, size in zip(ease, sizes, strict=True)]
    second = [min(size, r + (rng.random() < 0.3)) for r, size in zip(first, sizes, strict=True)]
    return first, second, sizes


def test_a_paired_interval_is_that_of_a_bootstrap_of_whole_examples() -> None:
    """The closed form against 2,000 resamples of examples, by standard deviation: 10 % off has probability 1e-9."""
    rng = random.Random(0)
    first, second, sizes = paired_samples(400, rng)
    differences = [b - a for a, b in zip(first, second, strict=True)]
    found = []
    for _ in range(2000):
        chosen = rng.choices(range(400), k=400)
        found.append(sum(differences[i] for i in chosen) / sum(sizes[i] for i in chosen))
    mean = sum(found) / len(found)
    deviation = (sum((each - mean) ** 2 for each in found) / len(found)) ** 0.5
    low, high = paired_share(differences, sizes)
    assert (low + high) / 2 == pytest.approx(sum(differences) / sum(sizes))
    added = 1.96 / 402  # of the two examples that are added, beside which the others' own spread stands
    assert (high - low) / 2 == pytest.approx(((1.96 * deviation) ** 2 + added**2) ** 0.5, rel=0.1)
    unpaired = [clustered_share(each, sizes) for each in (first, second)]
    assert unpaired[0].high > unpaired[1].low  # the single intervals overlap, and say nothing of a gain that is sure
    assert low > 0 and high - low < 0.3 * (unpaired[0].high - unpaired[0].low)
    mean_of_nats = clustered_mean(differences, sizes)
    assert mean_of_nats is not None and (mean_of_nats.high - mean_of_nats.low) / 2 == pytest.approx(
        1.96 * deviation, rel=0.1
    )


def test_examples_that_never_differ_leave_a_doubt() -> None:
    """100 examples without a difference: spread 0 + 0 + 1, half z / 102; 64 tokens an example change nothing."""
    for size in (1, 64):
        assert paired_share([0] * 100, [size] * 100) == pytest.approx((-1.959964 / 102, 1.959964 / 102))
    assert paired_share([4] * 3, [4] * 3).high == 1.0 and paired_share([-4] * 3, [4] * 3).low == -1.0


def test_coverage_of_the_difference() -> None:
    """300 samples of 60 examples. The true difference is the mean over 40,000; the seed is fixed, and fewer than 270 of
    300 have probability 2e-4."""
    rng, covered = random.Random(1), 0
    first, second, sizes = paired_samples(40_000, rng)
    truth = (sum(second) - sum(first)) / sum(sizes)
    for _ in range(300):
        first, second, sizes = paired_samples(60, rng)
        low, high = paired_share([b - a for a, b in zip(first, second, strict=True)], sizes)
        covered += low <= truth <= high
    assert covered >= 270
