"""`wide`: half types are widened before a sum, doubles stay doubles, and what asks for it keeps their digits."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mull.inference.exits import Thought, parse
from mull.models.precision import wide


@pytest.mark.parametrize(
    ("given", "wider"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_widened_to_single_precision_at_least(given: torch.dtype, wider: torch.dtype) -> None:
    x = torch.tensor([1.0, -0.3]).to(given)
    assert wide(x).dtype == wider and wide(x).equal(x.to(wider))


@pytest.mark.parametrize(
    ("rule", "digits", "expected"),
    [
        ("entropy:0", 1e-7, lambda p, q: abs(-(q * q.log()).sum() + (p * p.log()).sum())),
        ("confidence:0", 1e-12, lambda p, q: 1 - q.max()),  # noqa: ARG005
        ("kl:0", 1e-4, lambda p, q: (q * (q / p).log()).sum()),
        ("gate:0", 1e-12, lambda p, q: 1 / (1 + math.exp(0.4)) / (1 + math.exp(0.4 + 1e-9))),  # noqa: ARG005
    ],
)
def test_an_exit_rule_measures_doubles_in_doubles(
    rule: str, digits: float, expected: Callable[..., Tensor | float]
) -> None:
    """Guards thresholds below what single precision can tell apart (6e-8) on a model in doubles."""
    logits = torch.tensor([[[0.3, 1.1, -0.7]], [[0.3, 1.1 + 1e-5, -0.7]]], dtype=torch.float64)
    halts = torch.tensor([[0.4], [0.4 + 1e-9]], dtype=torch.float64)
    state, memory = torch.ones(1, 2, dtype=torch.float64), {}
    for count, (said, halt) in enumerate(zip(logits, halts, strict=True), start=1):
        thought = Thought(count, state, state, lambda said=said: said, lambda halt=halt: halt, memory)
        value = parse(rule).value(thought).item()
    assert value == pytest.approx(float(expected(*logits[:, 0].softmax(-1))), rel=digits)
