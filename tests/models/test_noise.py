"""Noise on the state after each iteration: in training only, by its formula, drawn by the initial state's generator."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mull.checkpoints.migrations import upgraded
from mull.models import LanguageModel, RecurrentDepthConfig

Build = Callable[..., LanguageModel]
Small = Callable[..., RecurrentDepthConfig]
Tokens = Callable[..., Tensor]


def seeded(number: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(number)


@pytest.fixture
def models(build: Build, small: Small) -> tuple[Any, Any]:
    """A model with noise and the same one without, in train mode."""
    return build(small(state_noise=0.3)).train(), build(small()).train()


def test_noise_is_its_formula(models: tuple[Any, Any], small: Small, tokens: Tokens) -> None:
    """Guards size, unit and order of the draws: s_0 first, then one draw for each iteration, the last one included."""
    noisy, plain = models
    ids, generator = tokens(small(), 2, 7), seeded()
    context = plain.context(ids)
    injected = plain.enter(ids, context)
    think, state = plain.thinker(injected, context), plain.start(injected, generator)
    for index in range(3):
        state = think(state, index)
        drawn = torch.randn(state.shape, generator=generator).double()
        size = state.float().square().mean(dim=-1, keepdim=True).sqrt().double()
        state = state + 0.3 * size * drawn
    found = noisy(ids, iterations=3, generator=seeded()).state
    torch.testing.assert_close(found, state, rtol=1e-6, atol=1e-6)
    moved = (found - plain(ids, iterations=3, generator=seeded()).state).norm() / found.norm()
    assert moved > 0.1


def test_there_is_none_in_eval_or_without_a_generator(models: tuple[Any, Any], small: Small, tokens: Tokens) -> None:
    """Guards inference and validation: the answers are those of a model without the field, to the bit."""
    noisy, plain = models
    ids = tokens(small(), 2, 7)
    assert torch.equal(noisy(ids, iterations=4).logits, plain(ids, iterations=4).logits)
    for model in (noisy.eval(), plain.eval()):
        model.answers = [model(ids, iterations=4).logits, model(ids, iterations=4, generator=seeded()).logits]
    assert all(torch.equal(one, other) for one, other in zip(noisy.answers, plain.answers, strict=True))


def test_equal_generators_draw_equal_noise_and_the_rest_of_the_process_does_not_matter(
    models: tuple[Any, Any], small: Small, tokens: Tokens
) -> None:
    """Guards resumed runs: the noise is a function of the generator alone."""
    noisy, ids = models[0], tokens(small(), 2, 7)
    first = noisy(ids, iterations=3, generator=seeded()).logits
    torch.manual_seed(99)
    assert torch.equal(noisy(ids, iterations=3, generator=seeded()).logits, first)
    assert not torch.equal(noisy(ids, iterations=3, generator=seeded(6)).logits, first)


def test_a_row_that_is_held_gets_no_noise(models: tuple[Any, Any], small: Small, tokens: Tokens) -> None:
    """Guards counts by row: a row that waits is its initial state when it begins, and has noise from then on only."""
    noisy, plain = models
    ids, counts = tokens(small(), 3, 7), torch.tensor([1, 4, 2])
    generator, states = seeded(), []
    for _, state in noisy.unroll(ids, counts, noisy.context(ids), generator=generator):
        states.append(state)
    start = plain.start(plain.enter(ids, plain.context(ids)), seeded())
    for row, count in enumerate(counts.tolist()):
        for index, state in enumerate(states):
            assert torch.equal(state[row], start[row]) == (index < 4 - count), (row, index)


def test_the_window_cuts_the_gradient_as_without_noise(models: tuple[Any, Any], small: Small, tokens: Tokens) -> None:
    """Guards the window and the constant: noise of no size gives the gradients of none, and its size has none."""
    noisy, plain = models
    ids = tokens(small(), 2, 5)

    def gradient(model: Any, **options: Any) -> Tensor:
        model.zero_grad()
        model(ids, iterations=4, generator=seeded(), **options).logits.square().mean().backward()
        return next(p.grad.clone() for p in model.core.parameters() if p.dim() == 2)

    with_noise = gradient(noisy, backprop_iterations=2)
    assert with_noise.isfinite().all() and not torch.allclose(with_noise, gradient(noisy))
    object.__setattr__(noisy.config, "state_noise", 1e-12)
    torch.testing.assert_close(gradient(noisy, backprop_iterations=2), gradient(plain, backprop_iterations=2))
    state = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    object.__setattr__(noisy.config, "state_noise", 0.5)
    noisy.disturb(state, seeded()).sum().backward()
    assert torch.equal(state.grad, torch.ones_like(state))


def test_a_state_of_the_callers_own_goes_with_a_generator_only_where_it_draws_noise(
    models: tuple[Any, Any], small: Small, tokens: Tokens
) -> None:
    """Guards a generator that would have nothing to draw; with noise it draws that, and no initial state."""
    noisy, plain = models
    ids = tokens(small(), 2, 5)
    state = plain(ids, iterations=2).state
    going_on = noisy(ids, iterations=2, state=state, generator=seeded()).state
    assert not torch.equal(going_on, noisy(ids, iterations=2, state=state).state)
    for model in (plain, noisy.eval()):
        with pytest.raises(ValueError, match="give one of them"):
            model(ids, iterations=2, state=state, generator=seeded())


@pytest.mark.parametrize("wrong", [-0.1, math.nan, math.inf])
def test_noise_that_is_no_size_is_refused(small: Small, wrong: float) -> None:
    with pytest.raises(ValueError, match="state_noise must be a number of at least 0"):
        small(state_noise=wrong)


def test_folders_from_before_the_field_have_no_noise_and_other_families_no_field() -> None:
    """Guards old folders, and that a folder whose field was lost beside newer ones is noticed where it matters."""
    assert upgraded("recurrent_depth", {"d_model": 8})["state_noise"] == 0.0
    assert upgraded("recurrent_depth", {"state_noise": 0.2})["state_noise"] == 0.2
    assert "state_noise" not in upgraded("transformer", {"d_model": 8}) | upgraded("inner_thinking", {"d_model": 8})
