"""Samplers of the capacity: pure functions of (seed, index), within their limits, and used by the training step."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mull.models import InnerThinkingConfig, InnerThinkingTransformer, Transformer, TransformerConfig
from mull.training.capacities import Constant, Uniform, WarmUp
from mull.training.data import Parity, TaskData
from mull.training.iterations import Fixed, LogNormalPoisson
from mull.training.module import TrainingModule
from mull.training.run import check_together

SHAPE = {"vocab_size": 7, "d_model": 8, "n_heads": 2}


def test_constant_names_one_share_or_one_for_each_pass():
    assert Constant(0.4)(0, 5, 3) == (0.4, 0.4, 0.4)
    assert Constant([0.9, 0.0])(0, 5, 2) == (0.9, 0.0)
    with pytest.raises(ValueError, match="names 2 routed passes and there are 3"):
        Constant([0.9, 0.0])(0, 5, 3)


def test_shares_by_pass_need_that_many_passes_in_every_batch():
    """Guards the start of a run: a count that has no shares would end it at whichever batch first draws it."""
    shares = Constant([0.5, 0.4, 0.3])
    for few in (LogNormalPoisson(4), Fixed(3)):
        with pytest.raises(
            ValueError, match=rf"every routed pass of 4 iterations, and {type(few).__name__} may draw .* mean 4"
        ):
            shares.check(few)
    for fine in (shares, Constant(0.5), WarmUp(0.5, 3), Uniform()):
        fine.check(Fixed(4))
    Constant(0.5).check(LogNormalPoisson(4))
    network = InnerThinkingTransformer(InnerThinkingConfig(**SHAPE))
    module = TrainingModule(network, LogNormalPoisson(4), capacity=shares)
    run = SimpleNamespace(
        model=module, datamodule=TaskData(Parity(8)), trainer=SimpleNamespace(world_size=1), start=None
    )
    with pytest.raises(ValueError, match="take Fixed with mean 4, or one share for all passes"):
        check_together(run)


def test_warm_up_falls_along_half_a_cosine_and_stays():
    sampler = WarmUp(0.6, batches=100)
    assert sampler(0, 0, 3) == (1.0, 1.0, 1.0)
    assert sampler(0, 50, 1) == pytest.approx((0.8,)) and sampler(0, 25, 1)[0] > 0.9
    shares = [sampler(0, index, 1)[0] for index in range(101)]
    assert shares == sorted(shares, reverse=True)
    assert sampler(0, 100, 2) == sampler(9, 10_000, 2) == pytest.approx((0.6, 0.6))


@given(st.integers(0, 9), st.integers(0, 1000), st.integers(1, 5))
def test_uniform_draws_each_pass_of_each_batch_by_itself(seed, index, n_passes):
    sampler = Uniform(0.2, 0.9)
    drawn = sampler(seed, index, n_passes)
    assert len(drawn) == n_passes and all(0.2 <= share <= 0.9 for share in drawn)
    assert drawn == Uniform(0.2, 0.9)(seed, index, n_passes)  # whatever was drawn before
    assert drawn != sampler(seed, index + 1, n_passes) and drawn != sampler(seed + 1, index, n_passes)
    assert len(set(drawn)) == n_passes


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Constant(1.5), "1.5 lies outside"),
        (lambda: WarmUp(1.2, 10), "1.2 lies outside"),
        (lambda: WarmUp(0.5, 0), "at least 1, not 0"),
        (lambda: Uniform(0.8, 0.3), "minimum <= maximum"),
        (lambda: Uniform(-0.1, 0.3), "-0.1 lies outside"),
    ],
)
def test_bad_limits_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_training_step_routes_what_the_sampler_says():
    network = InnerThinkingTransformer(InnerThinkingConfig(n_layers=2, mean_iterations=3, **SHAPE)).train()
    module = TrainingModule(network, Fixed(3), capacity=Constant([0.5, 0.25]))
    selected = module.output_for(torch.randint(7, (2, 8)), 0).selected
    assert selected.sum(dim=1).flatten(1).tolist() == [[4, 2], [4, 2]]


@pytest.mark.parametrize("iterations", [None, Fixed(2)])
def test_a_network_without_routed_passes_refuses(iterations):
    with pytest.raises(ValueError, match="this Transformer routes no tokens"):
        TrainingModule(Transformer(TransformerConfig(**SHAPE)), iterations, capacity=Constant(0.5))
