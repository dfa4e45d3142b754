"""Samplers of iteration counts: pure in (seed, index), and distributed as the papers say."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mull.training.iterations import Fixed, LinearCurriculum, LogNormalPoisson, PoissonPerSequence, Progressive, Uniform

SAMPLERS = {
    "fixed": "Fixed(6)",
    "log-normal Poisson": "LogNormalPoisson(8, maximum=40)",
    "uniform": "Uniform(4, 40)",
    "Poisson per sequence": "PoissonPerSequence(8)",
    "linear curriculum": "LinearCurriculum(8, batches=50)",
    "progressive": "Progressive(12, share=0.75)",
}

GOLDEN = {  # seed 3, batches 0, 1 and 99, two sequences each
    "fixed": [6, 6, 6],
    "log-normal Poisson": [7, 13, 11],
    "Poisson per sequence": [[10, 7], [10, 10], [10, 11]],
    "linear curriculum": [1, 3, 11],
    "uniform": [13, 35, 35],
    "progressive": [7, 12, 10],
}


@pytest.fixture(params=SAMPLERS.values(), ids=SAMPLERS.keys())
def sampler(request):
    return eval(request.param)


def as_list(drawn):
    return drawn.tolist() if isinstance(drawn, torch.Tensor) else drawn


def draws(sampler, count, seed=0, batch_size=1, first=0):
    return np.array([as_list(sampler(seed, index, batch_size)) for index in range(first, first + count)])


def test_a_draw_depends_on_seed_and_index_only(sampler):
    """Guards resume and ranks: neither the order of draws nor the global generators matter."""
    indices = list(range(20))
    forwards = {index: as_list(sampler(3, index, 4)) for index in indices}
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 (the very generator that must not matter)
    backwards = {index: as_list(sampler(3, index, 4)) for index in reversed(indices)}
    assert forwards == backwards


def test_other_processes_and_versions_draw_the_same():
    """Guards ranks and resumed runs: nothing of the process enters a draw, and its address is not renamed."""
    assert {
        name: [as_list(eval(text)(3, index, 2)) for index in (0, 1, 99)] for name, text in SAMPLERS.items()
    } == GOLDEN


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "fixed"])
def test_seeds_and_indices_differ(name):
    """Guards against a draw that ignores its seed or its index."""
    sampler = eval(SAMPLERS[name])
    one, other = draws(sampler, 50, seed=0, first=50), draws(sampler, 50, seed=1, first=50)
    assert (one != other).any()
    assert len(np.unique(one)) > 3


def test_log_normal_poisson_has_the_reference_distribution():
    """Guards the formula: mean 33.0, median 29, standard deviation 18.0, P(r < 8) = 0.9 % for a mean of 32.

    8,000 draws; tolerances are 5 standard errors: mean 18 / sqrt(n) = 0.20; median 1 / (2 f sqrt(n)) = 0.21 with
    density f = 0.027 there; standard deviation 0.28 (kurtosis about 9); share 0.0011.
    """
    counts = draws(LogNormalPoisson(32), 8_000)
    assert counts.mean() == pytest.approx(33.0, abs=1.0)
    assert np.median(counts) == pytest.approx(29, abs=1)
    assert counts.std() == pytest.approx(18.0, abs=1.4)
    assert (counts < 8).mean() == pytest.approx(0.009, abs=0.0053)


def test_sigma_zero_is_a_plain_poisson_plus_one():
    """Guards sigma: variance is the mean of the Poisson (4,000 draws; 5 standard errors: mean 0.32, variance 1.8)."""
    counts = draws(LogNormalPoisson(16, sigma=0.0), 4_000)
    assert counts.mean() == pytest.approx(17, abs=0.32)
    assert counts.var() == pytest.approx(16, abs=1.8)


def test_poisson_per_sequence_draws_one_count_for_each_row():
    """Guards shape, type and mean (40,000 counts: 5 standard errors are 0.07), and that rows are drawn one by one."""
    drawn = PoissonPerSequence(8)(0, 0, 5)
    assert drawn.shape == (5,) and drawn.dtype == torch.int64
    counts = draws(PoissonPerSequence(8), 400, batch_size=100)
    assert counts.shape == (400, 100)
    assert counts.min() >= 1
    assert counts.mean() == pytest.approx(8, abs=0.07)
    assert np.corrcoef(counts[:, 0], counts[:, 1])[0, 1] == pytest.approx(0, abs=0.25)


@pytest.mark.parametrize("make", [LogNormalPoisson, PoissonPerSequence])
@given(minimum=st.integers(1, 12), room=st.integers(0, 6))
def test_draws_stay_within_minimum_and_maximum(make, minimum, room):
    """Guards the clip at both ends, which draws of mean 8 often meet."""
    counts = draws(make(8, minimum=minimum, maximum=minimum + room), 30, batch_size=2)
    assert counts.min() >= minimum and counts.max() <= minimum + room
    if room == 0:
        assert (counts == minimum).all()


def test_a_batch_wide_draw_is_an_integer(sampler):
    """Guards the type that the models take: int for the batch, or int64 (B,)."""
    drawn = sampler(0, 0, 3)
    assert type(drawn) is int if not isinstance(sampler, PoissonPerSequence) else drawn.shape == (3,)


@pytest.mark.parametrize("per_sequence", [False, True])
def test_uniform_draws_every_count_alike(per_sequence):
    """Guards both ends and the shape: 6 counts, 6,000 draws each in 1,000 +- 5 standard errors of 29."""
    sampler = Uniform(3, 8, per_sequence)
    counts = draws(sampler, 6_000 if not per_sequence else 60, batch_size=100)
    assert sampler.mean == 5.5 and counts.shape == ((60, 100) if per_sequence else (6_000,))
    values, found = np.unique(counts, return_counts=True)
    assert values.tolist() == [3, 4, 5, 6, 7, 8]
    assert found == pytest.approx(1_000, abs=145)


def test_fixed_is_fixed():
    """Guards Fixed against adding Huginn's 1."""
    assert set(draws(Fixed(6), 50).tolist()) == {6}


def test_the_curriculum_climbs_linearly_from_start_to_mean():
    """Guards the climb: means over 1,000 seeds within 5 standard errors (0.3 to 2.9) of start, midway and the end."""
    curriculum = LinearCurriculum(32, batches=100, start=2)
    for index, mean, tolerance in ((0, 2, 0.3), (50, 17, 1.6), (100, 32, 2.9), (1000, 32, 2.9)):
        assert curriculum.mean_at(index) == mean
        over_seeds = np.mean([curriculum(seed, index, 1) for seed in range(1000)])
        assert over_seeds == pytest.approx(mean + 1, abs=tolerance)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Fixed(0), "between 1 and 10,000, not 0"),
        (lambda: Fixed(10_001), "between 1 and 10,000, not 10001"),
        (lambda: LogNormalPoisson(8, minimum=10_001), "minimum of at most 10,000, not minimum=10001"),
        (lambda: Progressive(10_001), "maximum must be at most 10,000, not 10001"),
        (lambda: LogNormalPoisson(math.nan), "between 1 and 10,000, not nan"),
        (lambda: LogNormalPoisson(8, sigma=math.nan), "sigma must lie between 0 and 5, not nan"),
        (lambda: LogNormalPoisson(8, sigma=50), "sigma must lie between 0 and 5, not 50"),
        (lambda: LinearCurriculum(8, batches=5, start=math.inf), "start=inf"),
        (lambda: LogNormalPoisson(0.5), "not 0.5"),
        (lambda: LogNormalPoisson(8, sigma=-1), "sigma"),
        (lambda: LogNormalPoisson(8, minimum=0), "minimum=0"),
        (lambda: PoissonPerSequence(8, minimum=4, maximum=3), "maximum=3"),
        (lambda: LinearCurriculum(8, batches=0), "batches=0"),
        (lambda: Uniform(0, 8), "minimum=0"),
        (lambda: Uniform(9, 8), "maximum=8"),
        (lambda: Progressive(0), "maximum must be at least 1, not 0"),
        (lambda: Progressive(8, share=1.5), "not 1.5"),
        (lambda: LinearCurriculum(8, batches=5, start=0), "start=0"),
    ],
)
def test_bad_values_are_named(make, named):
    """Guards that a wrong setting is refused at the start, with its value."""
    with pytest.raises(ValueError, match=named):
        make()


def test_the_progressive_draw_is_that_of_the_paper():
    """Guards n ~ U{0 .. m-1} and then k ~ U{1 .. m-n}, of which the window sees k and the count n + k: all 10 pairs of
    m = 4, each as often as it should be. 4,000 draws; 5 standard errors of a probability p are at most 0.034."""
    sampler, m = Progressive(4, share=1.0), 4
    pairs = [(sampler(1, index, 3), sampler.window(1, index)) for index in range(4_000)]
    for without in range(m):
        for within in range(1, m - without + 1):
            share = np.mean([pair == (without + within, within) for pair in pairs])
            assert share == pytest.approx(1 / m / (m - without), abs=0.034), (without, within)
    assert {count - within for count, within in pairs} == set(range(m))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_other_batches_of_the_progressive_draw_are_plain(share):
    """Guards the share, and the mean that a validation is chosen by; 4 standard errors of the rarest draw."""
    sampler, m = Progressive(20, share=share), 20
    pairs = [(sampler(0, index, 1), sampler.window(0, index)) for index in range(3_000)]
    plain = np.mean([pair == (m, m) for pair in pairs])
    assert plain == pytest.approx(1 - share + share / m / m, abs=4 * 0.5 / 3_000**0.5)
    assert np.mean([count for count, _ in pairs]) == pytest.approx(sampler.mean, abs=0.5)
    assert sampler.draws_window and Progressive(1).window(0, 0) == 1


def test_other_samplers_leave_the_window_to_the_module(sampler):
    """Guards backprop_iterations, which a sampler without windows must not override."""
    if not sampler.draws_window:
        assert sampler.window(0, 3) is None
