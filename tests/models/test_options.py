"""Every documented value of every option runs, forward and backward, in every arrangement of layers and every dtype."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mull.models import IteratedModel, LanguageModel, ModelConfig, ModelOutput, RecurrentDepthConfig
from mull.models.families import FAMILIES
from mull.models.injection import INJECTIONS

Build = Callable[..., LanguageModel]
Configurations = st.SearchStrategy[ModelConfig]
Small = Callable[..., RecurrentDepthConfig]
Tokens = Callable[..., Tensor]
Fields = dict[str, Any]


def arguments(model: LanguageModel, iterations: int | Tensor = 5) -> Fields:
    """Of a call: the iterations of a model that has them, with a gradient window of 2 where there is one."""
    window = {"backprop_iterations": 2} if isinstance(model, IteratedModel) else {}
    return {} if model.config.default_iterations is None else {"iterations": iterations, **window}


def run(model: LanguageModel, ids: Tensor) -> ModelOutput:
    """Forward at 5 iterations, and backward from what is read out."""
    out = model(ids, **arguments(model))
    beside = [said.float().mean() for said in (out.exit_logit, out.value) if said is not None]
    read = out.logits.float().square().mean() + sum(beside)
    read.backward()
    return out


def assert_every_parameter_learns(model: LanguageModel) -> None:
    """But what compares tokens that see themselves alone: there is nothing to weigh, and its gradient is zero."""
    alone = model.config.window == 1 and model.config.near_heads == model.config.n_heads
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        silent = alone and name.endswith(("qk_bias", "q_norm.weight", "k_norm.weight"))
        assert silent or parameter.grad.abs().max() > 0, name


def test_a_value_runs_forward_and_backward(config: ModelConfig, build: Build, tokens: Tokens) -> None:
    model = build(config, torch.float32).train()
    out = run(model, tokens(config, 2, 7))
    assert out.logits.shape == (2, 7, config.vocab_size)
    assert out.state.shape == (2, 7, config.d_model)
    assert out.iterations.shape == (2, 7) and out.iterations.dtype == torch.int64
    assert out.logits.isfinite().all()
    assert_every_parameter_learns(model)


def test_a_value_runs_under_bf16_autocast(config: ModelConfig, build: Build, tokens: Tokens) -> None:
    """Weights cast without gradient before the window must not be reused inside it."""
    model = build(config, torch.float32).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = run(model, tokens(config, 2, 7))
    assert out.logits.isfinite().all()
    assert_every_parameter_learns(model)


def test_a_value_runs_in_a_bf16_model(config: ModelConfig, build: Build, tokens: Tokens) -> None:
    model = build(config, torch.bfloat16).train()
    out = run(model, tokens(config, 2, 7))
    assert out.logits.dtype == out.state.dtype == torch.bfloat16
    assert_every_parameter_learns(model)


def test_a_value_trains_with_counts_by_row(config: ModelConfig, build: Build, tokens: Tokens) -> None:
    """Answers and gradients of a training batch whose rows have counts of their own are those of its rows."""
    model, ids, counts = build(config).train(), tokens(config, 3, 7), torch.tensor([1, 4, 2])
    together, apart = (list[Tensor]() for _ in range(2))
    out = model(ids, **arguments(model, counts))
    out.logits.square().sum().backward()
    for found in (together, apart):
        for parameter in model.parameters():
            found.append(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone())
        if found is together:
            model.zero_grad(set_to_none=True)
            for row, count in enumerate(counts.tolist()):
                alone = model(ids[row : row + 1], **arguments(model, count))
                torch.testing.assert_close(out.logits[row], alone.logits[0], rtol=1e-10, atol=1e-10)
                alone.logits.square().sum().backward()
    torch.testing.assert_close(together, apart, rtol=1e-9, atol=1e-9)


@settings(max_examples=15)
@given(data=st.data())
def test_any_combination_of_values_runs_in_an_fp64_model(
    any_config: Configurations, build: Build, tokens: Tokens, data: st.DataObject
) -> None:
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
@pytest.mark.parametrize("family", [model_class.config_class for model_class in FAMILIES.values()])
def test_odd_shapes_run(build: Build, tokens: Tokens, family: type[ModelConfig], shape: Fields) -> None:
    config = family(**{"vocab_size": 3} | shape)
    for batch_size, length in ((1, 1), (3, 1), (1, 5)):
        assert run(build(config).train(), tokens(config, batch_size, length)).logits.isfinite().all()


CONFIGS = [model_class.config_class for model_class in FAMILIES.values()]
SHAPE: Fields = {"vocab_size": 11, "d_model": 24, "n_heads": 6, "n_kv_heads": 2, "d_ff": 20, "max_length": 64}
LAYERS: dict[type[ModelConfig], Fields] = {RecurrentDepthConfig: {"n_prelude": 1, "n_core": 3, "n_coda": 2}}
CHANGES: Fields = {  # every field, and a value other than its usual one
    "vocab_size": 12,
    "d_model": 36,
    "n_heads": 2,
    "n_kv_heads": 6,
    "d_ff": 16,
    "norm_eps": 0.1,
    "rope_base": 100.0,
    "tie_embeddings": False,
    "positions": "none",
    "rotary_layout": "half",
    "qk_norm": True,
    "qk_bias": False,
    "causal": False,
    "board": True,
    "window": 3,
    "window_heads": 3,
    "convolution": "mlp",
    "kernel": 2,
    "residual_scale": 0.5,
    "value_head": True,
    "n_layers": 3,
    # of the recurrent-depth family
    "n_prelude": 2,
    "n_core": 2,
    "n_coda": 1,
    "mean_iterations": 5,
    "injection": "add",
    "initial_state": "zero",
    "state_noise": 0.5,
    "damping": 0.5,
    "answer_feedback": True,
    "exit_gate": True,
    # of inner thinking
    "thinking_layers": (0, 1),
    "capacity": 0.3,
    "rule": "loop",
    "gate": "tanh",
    "step_encoding": False,
    "step_start": 3.0,
    "router_temperature": 4.0,
    "routing": False,
}
WIRINGS = {"sandwich": "pre_norm", "pre_norm": "sandwich"}  # the usual one is another in each family
BESIDE: dict[str, Fields] = {  # what a field needs, before and after its change
    "board": {"causal": False},
    "window_heads": {"window": 3},
    "kernel": {"convolution": "mlp"},
}
SILENT = {  # fields that change no answer, and why
    "max_length": "it refuses rows that are longer (test_equivalence.py)",
    "stop_tokens": "they end a text that is written (tests/inference/test_generate.py)",
    "detached_auxiliary": "it changes gradients alone (inner_thinking/test_equations.py)",
}
DRAWN = {"initial_state", "state_noise"}  # heard where a generator draws, in training; elsewhere nothing is drawn
START = {"step_start"}  # heard in the weights that a model starts with; the others are compared with equal weights


def hearing(family: type[ModelConfig]) -> list[str]:
    """The fields of a family that can be changed and should be heard: those with more than one value there."""
    hints = get_type_hints(family)
    fixed = {name for name, hint in hints.items() if get_origin(hint) is Literal and len(get_args(hint)) == 1}
    deaf = {name for name, needs in BESIDE.items() if fixed & {name, *needs}}
    return [f.name for f in fields(family) if f.name not in {*SILENT, *fixed, *deaf}]


def said(model: LanguageModel, ids: Tensor, drawn: bool) -> list[Tensor | None]:
    """All that a model says of ids at its default count: in eval, or in training with a generator."""
    generator = {"generator": torch.Generator().manual_seed(3)} if drawn else {}
    out = model.train(drawn)(ids, **generator)
    return [out.logits, out.exit_logit, out.value]


def differs(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether an answer is there in one case alone, of another shape, or another."""
    if one is None or other is None:
        return one is not other
    return one.shape != other.shape or bool((one - other).abs().max() > 1e-4)


def test_every_field_is_changed_or_says_why_not() -> None:
    """Guards the two tables above against a field that comes and is in neither."""
    names = {f.name for family in CONFIGS for f in fields(family)}
    assert CHANGES.keys() | SILENT.keys() | {"wiring"} == names and not CHANGES.keys() & SILENT.keys()
    assert {name for family in CONFIGS for name in hearing(family)} == names - SILENT.keys()


HEARD = [(family, name, CHANGES.get(name)) for family in CONFIGS for name in hearing(family)]
HEARD += [(RecurrentDepthConfig, "injection", name) for name in INJECTIONS if name not in ("concat", "add")]


@pytest.mark.parametrize(
    ("family", "name", "value"), HEARD, ids=lambda part: getattr(part, "model_type", None) or str(part)
)
def test_every_field_is_heard(build: Build, tokens: Tokens, family: type[ModelConfig], name: str, value: Any) -> None:
    """A field that changes nothing is a field that is ignored. Rows are of nine tokens, a board."""
    shape = SHAPE | LAYERS.get(family, {}) | BESIDE.get(name, {})
    usual = family(**shape)
    changed = family(**shape | {name: WIRINGS[usual.wiring] if name == "wiring" else value})
    assert getattr(changed, name) != getattr(usual, name)
    before, after, ids = build(usual), build(changed), tokens(usual, 2, 9)
    if name not in START and shapes(before) == shapes(after):
        after.load_state_dict(before.state_dict())
    drawn = name in DRAWN
    assert any(map(differs, said(before, ids, drawn), said(after, ids, drawn)))


def shapes(model: LanguageModel) -> dict[str, torch.Size]:
    """The shapes of a model's weights, by name."""
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def test_the_exit_gate_is_read_beside_the_logits_and_changes_no_answer(
    build: Build, small: Small, tokens: Tokens
) -> None:
    config = small(exit_gate=True)
    model, ids = build(config), tokens(config, 2, 7)
    out = model(ids, 3)
    expected = model.final_norm(out.state) @ model.exit_gate.weight[0] + model.exit_gate.bias
    torch.testing.assert_close(out.exit_logit, expected)
    model.exit_gate = None
    gateless = model(ids, 3)
    assert gateless.exit_logit is None
    assert torch.equal(gateless.logits, out.logits)
