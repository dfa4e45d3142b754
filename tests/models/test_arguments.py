"""What the arguments of a call may be: counts, states and masks of any kind mean the same, and others are named."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mull.inference.tracing.trace import trace
from mull.models import InnerThinkingConfig, IteratedModel, LanguageModel, RecurrentDepthConfig, TransformerConfig

Build = Callable[..., LanguageModel]
SHAPE: dict[str, Any] = {"vocab_size": 11, "d_model": 24, "n_heads": 3, "max_length": 32}
CONFIGS: dict[str, Any] = {
    "recurrent_depth": RecurrentDepthConfig(**SHAPE, n_core=2),
    "inner_thinking": InnerThinkingConfig(**SHAPE, n_layers=3),
    "transformer": TransformerConfig(**SHAPE, n_layers=1),
}
LOOPED = ["recurrent_depth", "inner_thinking"]


@pytest.fixture
def model(build: Build) -> LanguageModel:
    return build(CONFIGS["recurrent_depth"])


def ids(rows: int = 2, length: int = 4) -> Tensor:
    return torch.arange(rows * length).view(rows, length) % 7


@pytest.mark.parametrize("name", LOOPED)
def test_counts_by_row_of_no_rows_are_no_error(build: Build, name: str) -> None:
    """As the empty batch without counts: logits of no rows."""
    made = build(CONFIGS[name])
    for counts in (torch.zeros(0, dtype=torch.int64), np.zeros(0, np.int32), 3):
        out = made(ids(0), iterations=counts)
        assert out.logits.shape == (0, 4, made.config.vocab_size) and out.iterations.shape == (0, 4)


@pytest.mark.parametrize("name", LOOPED)
@pytest.mark.parametrize(
    "counts", [[1, 3], (1, 3), {1, 3}, range(1, 4, 2), np.array([1, 3]), torch.tensor([1, 3]), [np.int8(1), 3]], ids=str
)
def test_readings_are_asked_for_as_iterations_are(build: Build, name: str, counts: Any) -> None:
    """By integers of Python, numpy and torch; so is the sweep."""
    made = build(CONFIGS[name])
    found = made(ids(), 3, read_at=counts).readings
    assert sorted(found) == [1, 3] and all(type(count) is int for count in found)
    assert torch.equal(found[3].logits, made(ids(), 3).logits)
    assert sorted(count for count, _ in made.sweep(ids(), counts)) == [1, 3]
    assert list(made.sweep(ids(), [])) == []


@pytest.mark.parametrize("name", LOOPED)
@pytest.mark.parametrize(
    ("read_at", "says"),
    [
        (2, "read_at must be a list of counts, not 2; write one count as [8]"),
        (torch.tensor(2), "read_at must be a list of counts, not 2"),
        (None, "read_at must be a list of counts, not None"),
        ([True], "read_at must be an integer of at least 1, not True"),
        (torch.tensor([True]), "read_at must be an integer of at least 1, not True"),
        ([1.0], "read_at must be an integer of at least 1, not 1.0"),
        ("2", "read_at must be an integer of at least 1, not '2'"),
        ([0], "read_at must be at least 1, not 0"),
        ([1, 4], "read_at [4] lies outside 1 .. iterations=3"),
    ],
)
def test_what_is_no_list_of_counts_is_named(build: Build, name: str, read_at: Any, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        build(CONFIGS[name])(ids(), 3, read_at=read_at)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_state_of_another_number_type_is_taken_in_the_models(model: LanguageModel, dtype: torch.dtype) -> None:
    """By forward and by a trace alike, and the gradient reaches the caller's own."""
    state = torch.randn(2, 4, 24, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    narrow = model.float()
    expected = narrow(ids(), 3, state=state.float())
    found = narrow(ids(), 3, state=state)
    assert found.logits.dtype == torch.float32 and torch.equal(found.logits, expected.logits)
    assert torch.equal(trace(narrow, ids(), 3, state=state.detach()).logits, expected.logits)
    found.logits.sum().backward()
    assert state.grad is not None and state.grad.dtype == dtype and state.grad.any()


def test_a_state_is_left_as_it_is_under_autocast(model: LanguageModel) -> None:
    """There the states of one loop are of two types: 2 + 1 iterations stay 3, to the bit, also from an fp32 state."""
    narrow = model.float()
    assert isinstance(narrow, IteratedModel)
    with torch.autocast("cpu", torch.bfloat16):
        whole, first = narrow(ids(), 3), narrow(ids(), 2)
        assert torch.equal(narrow(ids(), 1, state=first.state).logits, whole.logits)
        state = torch.randn(2, 4, 24)
        assert narrow.begin(torch.zeros(2, 4, 24, dtype=torch.bfloat16), state) is state


@pytest.mark.parametrize(
    ("state", "found"),
    [
        (np.zeros((2, 4, 24)), "ndarray"),
        (torch.zeros(2, 4, 24, dtype=torch.int64), "torch.int64 of (2, 4, 24)"),
        (torch.zeros(2, 4, 24, dtype=torch.complex64), "torch.complex64 of (2, 4, 24)"),
        (torch.zeros(1, 4, 24), "torch.float32 of (1, 4, 24)"),
        ("zero", "str"),
    ],
)
def test_what_is_no_state_is_named_by_forward_and_trace(model: LanguageModel, state: Any, found: str) -> None:
    says = re.escape(f"state must have shape (2, 4, 24), a tensor of floats, not {found}")
    for call in (lambda: model(ids(), 3, state=state), lambda: trace(model, ids(), 3, state=state)):
        with pytest.raises(ValueError, match=says):
            call()


@pytest.mark.parametrize("value", [2, -1])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.float32])
@pytest.mark.parametrize("name", [*LOOPED, "transformer"])
def test_a_mask_of_other_numbers_is_refused(build: Build, name: str, dtype: torch.dtype, value: int) -> None:
    """Of integers as of floats: 2 and -1 counted as tokens."""
    mask = torch.tensor([[value, 1, 1, 1], [0, 1, 1, 1]], dtype=dtype)
    for given in (mask, mask.tolist(), mask.numpy()):
        with pytest.raises(ValueError, match=f"attention_mask holds {value}(.0)?: it is 1 at tokens and 0 at padding"):
            build(CONFIGS[name])(ids(), attention_mask=given)
