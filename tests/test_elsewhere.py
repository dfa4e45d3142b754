"""The second device of the tests (elsewhere.py) refuses what a GPU refuses, and nothing else: guards the guard."""

import copy
from types import ModuleType

import numpy as np
import pytest
import torch
from torch.nn import functional as F


def test_a_tensor_left_on_the_cpu_is_found_a_number_is_none_and_a_copy_is_allowed(elsewhere: ModuleType) -> None:
    away, Elsewhere, cpu = elsewhere.ELSEWHERE, elsewhere.Elsewhere, elsewhere.CPU
    with elsewhere.second_device():
        there = torch.randn(3, 4, device=away)
        assert isinstance(there @ there.T, Elsewhere) and isinstance(there * torch.tensor(2.0), Elsewhere)
        for wrong in (
            lambda: there + torch.ones(4),
            lambda: there @ torch.ones(4, 4),
            lambda: torch.cat([there, torch.ones(1, 4)]),
            lambda: torch.stack([there[0, 0], torch.tensor(1.0)]),
            lambda: there[torch.tensor([0, 1])],
            lambda: torch.where(torch.ones(3, 1, dtype=torch.bool), there, there),
        ):
            with pytest.raises(RuntimeError, match="on the CPU beside"):
                wrong()
        assert torch.equal(there.to(cpu), there.held) and not isinstance(there.to(cpu), Elsewhere)
        assert isinstance(there.copy_(torch.ones(4)), Elsewhere) and there.sum().item() == 12
        assert torch.tensor([1, 2], device=away).tolist() == [1, 2]
        assert (there > 0).nonzero().shape == (12, 2) and there[0].tolist() == [1, 1, 1, 1]
        twin = copy.deepcopy(there)
        assert isinstance(twin, Elsewhere) and twin.held is not there.held and torch.equal(twin.held, there.held)


@pytest.mark.parametrize("gradient", [False, True])
def test_operations_made_of_many_answer_and_refuse_as_others(elsewhere: ModuleType, gradient: bool) -> None:
    """Without a gradient each is one step, with one it is a dozen."""
    away = elsewhere.Elsewhere
    x, w = torch.randn(1, 2, 3, 4), torch.randn(4, 4)
    calls = (
        lambda x, w: F.linear(x, w),
        lambda x, w: F.rms_norm(x, (4,), w[0], 1e-6),
        lambda x, w: F.scaled_dot_product_attention(x, x @ w, x),
    )
    for call in calls:
        with elsewhere.second_device(), torch.set_grad_enabled(gradient):
            found = call(away(x), away(w))
            with pytest.raises(RuntimeError, match="on the CPU beside"):
                call(away(x), w)
        assert isinstance(found, away)
        torch.testing.assert_close(found.held, call(x, w))


def test_numpy_takes_no_tensor_of_another_device(elsewhere: ModuleType) -> None:
    with elsewhere.second_device():
        there = torch.ones(3, device=elsewhere.ELSEWHERE)
        for wrong in (there.numpy, lambda: np.asarray(there)):
            with pytest.raises(TypeError, match="convert a tensor of another device to numpy"):
                wrong()
        assert there.cpu().numpy().tolist() == [1, 1, 1]


def test_a_generator_draws_on_its_own_device_and_the_same_numbers(elsewhere: ModuleType) -> None:
    with elsewhere.second_device():
        here, there = torch.Generator().manual_seed(5), torch.Generator(elsewhere.ELSEWHERE).manual_seed(5)
        assert here.device == elsewhere.CPU and there.device == elsewhere.ELSEWHERE
        drawn = torch.rand(4, generator=there, device=there.device)
        assert isinstance(drawn, elsewhere.Elsewhere)
        assert torch.equal(drawn.cpu(), torch.rand(4, generator=here))
        for wrong in (
            lambda: torch.rand(4, generator=there),
            lambda: torch.rand(4, generator=here, device=elsewhere.ELSEWHERE),
            lambda: torch.multinomial(drawn, 1, generator=here),
            lambda: torch.empty(4).normal_(generator=there),
        ):
            with pytest.raises(RuntimeError, match="a generator of"):
                wrong()
