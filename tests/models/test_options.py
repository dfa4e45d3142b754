"""Every documented value of every option runs, forward and backward, in every arrangement of layers and every dtype."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mull.models import (
    InnerThinkingConfig,
    RecurrentDepthConfig,
    RecurrentDepthTransformer,
    Transformer,
    TransformerConfig,
)


def run(model, ids):
    """Forward at 5 iterations, with a gradient window of 2 where there is one, and backward from what is read out."""
    looped = not isinstance(model, Transformer)
    window = {"backprop_iterations": 2} if isinstance(model, RecurrentDepthTransformer) else {}
    out = model(ids, **({"iterations": 5, **window} if looped else {}))
    read = out.logits.float().square().mean() + (0 if out.exit_logit is None else out.exit_logit.float().mean())
    read.backward()
    return out


def assert_every_parameter_learns(model):
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_a_value_runs_forward_and_backward(config, build, tokens):
    model = build(config, torch.float32).train()
    out = run(model, tokens(config, 2, 7))
    assert out.logits.shape == (2, 7, config.vocab_size)
    assert out.state.shape == (2, 7, config.d_model)
    assert out.iterations.shape == (2, 7) and out.iterations.dtype == torch.int64
    assert out.logits.isfinite().all()
    assert_every_parameter_learns(model)


def test_a_value_runs_under_bf16_autocast(config, build, tokens):
    """Weights cast without gradient before the window must not be reused inside it."""
    model = build(config, torch.float32).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = run(model, tokens(config, 2, 7))
    assert out.logits.isfinite().all()
    assert_every_parameter_learns(model)


def test_a_value_runs_in_a_bf16_model(config, build, tokens):
    model = build(config, torch.bfloat16).train()
    out = run(model, tokens(config, 2, 7))
    assert out.logits.dtype == out.state.dtype == torch.bfloat16
    assert_every_parameter_learns(model)


@settings(max_examples=15)
@given(data=st.data())
def test_any_combination_of_values_runs_in_an_fp64_model(any_config, build, tokens, data):
    config = data.draw(any_config)
    model = build(config).train()
    out = run(model, tokens(config, 2, 5))
    assert out.logits.dtype == out.state.dtype == torch.float64
    assert_every_parameter_learns(model)


@pytest.mark.parametrize(
    "shape",
    [
        {"d_model": 6, "n_heads": 1},
        {"d_model": 6, "n_heads": 3, "n_kv_heads": 1, "d_ff": 1},
        {"d_model": 15, "n_heads": 3, "positions": "none"},
        {"d_model": 10, "n_heads": 5, "n_kv_heads": 5, "vocab_size": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("family", [RecurrentDepthConfig, InnerThinkingConfig, TransformerConfig])
def test_odd_shapes_run(build, tokens, family, shape):
    config = family(**{"vocab_size": 3} | shape)
    for batch_size, length in ((1, 1), (3, 1), (1, 5)):
        assert run(build(config).train(), tokens(config, batch_size, length)).logits.isfinite().all()


@pytest.mark.parametrize("changes", [
    {"wiring": "pre_norm"}, {"positions": "none"}, {"rotary_layout": "half"}, {"qk_norm": True}, {"qk_bias": False},
    {"tie_embeddings": False}, {"injection": "add"}, {"injection": "diagonal"},
    {"n_kv_heads": 6}, {"rope_base": 100.0}, {"norm_eps": 0.1}, {"n_core": 2},
], ids=str)  # fmt: skip
def test_every_field_is_heard(build, small, tokens, changes):
    """A field that changes nothing is a field that is ignored."""
    ids = tokens(small(), 2, 7)
    assert (build(small())(ids, 3).logits - build(small(**changes))(ids, 3).logits).abs().max() > 1e-4


def test_the_exit_gate_is_read_beside_the_logits_and_changes_no_answer(build, small, tokens):
    config = small(exit_gate=True)
    model, ids = build(config), tokens(config, 2, 7)
    out = model(ids, 3)
    expected = model.final_norm(out.state) @ model.exit_gate.weight[0] + model.exit_gate.bias
    torch.testing.assert_close(out.exit_logit, expected)
    model.exit_gate = None
    gateless = model(ids, 3)
    assert gateless.exit_logit is None
    assert torch.equal(gateless.logits, out.logits)
