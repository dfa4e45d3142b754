"""Muon: torch's own, bit for bit in bfloat16 and closely in float32, and the number type that a device is fast in."""

import copy
import io
from typing import Any

import pytest
import torch
from torch import nn

from mull.training import muon
from mull.training.muon import Muon, NumberType

SHAPES = [(8, 8), (5, 12), (12, 5), (1, 7), (3, 1)]


def matrices() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def torchs(parameters: list[nn.Parameter]) -> torch.optim.Muon:
    return torch.optim.Muon(parameters, lr=0.02, momentum=0.9, weight_decay=0.3, adjust_lr_fn="match_rms_adamw")


def ours(parameters: list[nn.Parameter], orthogonalize_in: NumberType) -> Muon:
    return Muon(parameters, lr=0.02, momentum=0.9, weight_decay=0.3, orthogonalize_in=orthogonalize_in)


def train(parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, steps: range) -> None:
    """Steps with gradients that depend on the number of the step; the last matrix never has one."""
    for step in steps:
        generator = torch.Generator().manual_seed(100 + step)
        for parameter in parameters[:-1]:
            parameter.grad = torch.randn(parameter.shape, generator=generator) * 10.0 ** (step - 1)
        optimizer.step()


def test_in_bfloat16_it_is_torchs_bit_for_bit() -> None:
    """Guards rounds, coefficients, momentum, decay and scale against the implementation that everybody uses."""
    one, other = matrices(), matrices()
    train(one, ours(one, "bfloat16"), range(4))
    train(other, torchs(other), range(4))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert torch.equal(one[-1], matrices()[-1]) and not torch.equal(one[0], matrices()[0])


def test_in_float32_it_is_torchs_closely() -> None:
    """Guards the other number type: the update differs from torch's by no more than bfloat16's eight bits explain."""
    one, other = matrices(), matrices()
    train(one, ours(one, "float32"), range(4))
    train(other, torchs(other), range(4))
    for a, b, start in zip(one[:-1], other[:-1], matrices(), strict=False):
        assert 0 < (a - b).norm() < 0.03 * (a - start).norm()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_singular_values_come_near_one_and_vectors_stay(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """Guards what orthogonalisation is for, at every shape, and that it leaves its argument alone."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    kept = matrix.clone()
    answer = muon.orthogonal(matrix, dtype)
    assert torch.equal(matrix, kept) and answer.dtype == dtype and answer.shape == shape
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    inside = u.T @ answer.double() @ v.T  # the answer in the matrix's own directions: nearly diagonal
    assert (inside - torch.diag(inside.diag())).abs().max() < (0.05 if dtype == torch.bfloat16 else 1e-4)
    assert (inside.diag()[s > 0.05 * s[0]] - 1).abs().max() < 0.35


def test_a_state_goes_on_bit_for_bit_and_so_does_one_of_torchs() -> None:
    """Guards resuming, also from states that were saved when torch's own optimizer was in use."""
    for first in (lambda p: ours(p, "bfloat16"), torchs):
        whole, part = matrices(), matrices()
        train(whole, ours(whole, "bfloat16"), range(5))
        optimizer = first(part)
        train(part, optimizer, range(2))
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        resumed = copy.deepcopy(part)
        again = ours(resumed, "bfloat16")
        again.load_state_dict(torch.load(file, weights_only=True))
        train(resumed, again, range(2, 5))
        assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))


@pytest.mark.parametrize(
    ("flags", "has"),
    [
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, False),
        ({"avx512_bf16": True}, True),
        ({"avx512_bf16": False, "amx_bf16": True}, True),
        ({"architecture": "aarch64", "bf16": True, "sve_bf16": False}, True),
        ({"architecture": "aarch64", "neon": True, "bf16": False}, False),
        ({}, False),
    ],
)
def test_auto_goes_by_the_flags_of_the_cpu(flags: dict[str, Any], has: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the speed on CPUs without bfloat16 units, where its emulation takes up to 25 times as long."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags, raising=False)
    muon.fast_type.cache_clear()
    try:
        wanted = torch.bfloat16 if has else torch.float32
        assert muon.number_type("auto", torch.device("cpu")) == wanted
        one, other = matrices(), matrices()
        train(one, ours(one, "auto"), range(2))
        train(other, ours(other, "bfloat16" if has else "float32"), range(2))
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    finally:
        muon.fast_type.cache_clear()
    assert muon.number_type("float32", torch.device("cpu")) == torch.float32
    assert muon.number_type("bfloat16", torch.device("cuda")) == torch.bfloat16


def test_what_is_no_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Muon is for matrices, not for a parameter of shape \(3,\)"):
        Muon([nn.Parameter(torch.zeros(3))])
