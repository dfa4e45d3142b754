"""What is counted is verified: parameters with the module, FLOPs with torch's counter, cache bytes with the tensors."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mull.models import (
    InnerThinkingConfig,
    InnerThinkingTransformer,
    LanguageModel,
    ModelConfig,
    RecurrentDepthConfig,
    RecurrentDepthTransformer,
    Transformer,
    TransformerConfig,
)
from mull.models.routed_layer import MULTIPLE
from mull.models.rules import RULES

Build = Callable[..., LanguageModel]
Configurations = st.SearchStrategy[ModelConfig]
Tokens = Callable[..., Tensor]

WIDE = {"vocab_size": 50, "d_model": 48, "n_heads": 6}
COSTED = {
    "concat": RecurrentDepthConfig(**WIDE, n_core=2, n_kv_heads=2),
    "add": RecurrentDepthConfig(
        **WIDE, n_coda=2, injection="add", wiring="pre_norm", qk_norm=True, tie_embeddings=False, answer_feedback=True
    ),
    "diagonal": RecurrentDepthConfig(**WIDE, n_prelude=0, n_coda=0, injection="diagonal", d_ff=10, exit_gate=True),
    "both ways": RecurrentDepthConfig(**WIDE, n_kv_heads=2, causal=False, window=5, window_heads=3),
    "transformer": TransformerConfig(**WIDE, n_layers=3, n_kv_heads=3),
}


def counted(model: LanguageModel, backward: bool, **arguments: Any) -> float:
    """FLOPs per token as torch counts them; attention as matrix products, since the CPU's own kernel is not counted."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
        out = model(torch.zeros(2, 17, dtype=torch.int64), **arguments)
        if backward:
            (out.logits.sum() + (0 if out.exit_logit is None else out.exit_logit.sum())).backward()
    return counter.get_total_flops() / (2 * 17)


@given(data=st.data())
def test_parameters_are_exactly_those_of_the_module(
    any_config: Configurations, build: Build, data: st.DataObject
) -> None:
    config = data.draw(any_config)
    assert config.parameters == sum(p.numel() for p in build(config).parameters())


@pytest.mark.parametrize("config", COSTED.values(), ids=COSTED)
def test_flops_agree_with_the_counter_within_one_percent(config: ModelConfig) -> None:
    looped = isinstance(config, RecurrentDepthConfig)
    model = (RecurrentDepthTransformer if looped else Transformer)(config)
    iterations, arguments = (4, {"iterations": 4}) if looped else (None, {})
    claimed = config.flops_per_token(iterations, 17)
    assert claimed == pytest.approx(counted(model, False, **arguments), rel=0.01)
    for window in (None, 2, 9) if looped else (None,):
        windowed = arguments | ({"backprop_iterations": window} if looped else {})
        claimed = config.training_flops_per_token(iterations, 17, window)
        assert claimed == pytest.approx(counted(model, True, **windowed), rel=0.01)


@pytest.mark.parametrize("heads", [2, 4, 6])
def test_a_token_behind_a_cache_costs_what_its_window_shows(heads: int) -> None:
    """Guards windows, outside of which a call of several tokens computes scores, and hides them, and a token behind a
    cache none."""
    config = RecurrentDepthConfig(**WIDE, n_kv_heads=3, window=5, window_heads=heads)
    model, ids = RecurrentDepthTransformer(config).eval(), torch.zeros(2, 40, dtype=torch.int64)
    cache, found = model.new_cache(2, 40), []
    for new in (ids[:, :3], ids[:, :1], ids[:, :34], ids[:, :1]):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
            out = model(new, 4, cache=cache)
        found.append(counter.get_total_flops() / new.numel())
        assert model.executed_flops_per_token(out, cache.length) == pytest.approx(found[-1], rel=0.01)
    assert config.flops_per_token(4, 39, one_by_one=True) < 0.97 * config.flops_per_token(4, 39)


def test_executed_flops_are_those_of_the_iterations_that_rows_had() -> None:
    """Rows with fewer iterations hold: what they would have cost is not counted."""
    config = COSTED["concat"]
    out = RecurrentDepthTransformer(config)(torch.zeros(2, 17, dtype=torch.int64), torch.tensor([1, 4]))
    model, (few, many) = RecurrentDepthTransformer(config), (config.flops_per_token(count, 17) for count in (1, 4))
    assert model.executed_flops_per_token(out) == (few + many) / 2
    assert model.executed_flops(out, [17, 17]) == [17 * few, 17 * many]
    assert model.executed_flops(out, [17, 17], [3, 1]) == [3 * few, many]  # the other tokens are padding


def test_executed_flops_of_a_row_are_those_of_its_own_tokens() -> None:
    """Guards inner thinking behind a window: padding is not billed, and a row with one token in a call of several
    computes the scores outside of its window as the others do."""
    config = InnerThinkingConfig(vocab_size=7, d_model=24, n_heads=4, n_layers=2, mean_iterations=3, window=4)
    model = InnerThinkingTransformer(config).eval()
    out = model(torch.zeros(2, 17, dtype=torch.int64))
    assert out.selected is not None
    for new in ([17, 1], [5, 17]):
        taken = [out.selected[row, -own:].double().mean(dim=0).tolist() for row, own in enumerate(new)]
        exact = [own * config.flops_at_shares(shares, 17) for own, shares in zip(new, taken, strict=True)]
        assert model.executed_flops(out, [17, 17], new) == exact


@given(data=st.data(), iterations=st.integers(1, 4), dtype=st.sampled_from((torch.float32, torch.bfloat16)))
def test_cache_bytes_are_those_of_the_tensors(
    any_causal_config: Configurations, build: Build, data: st.DataObject, iterations: int, dtype: torch.dtype
) -> None:
    config = data.draw(any_causal_config)
    looped = config.default_iterations is not None
    model = build(config, dtype)
    cache = model.new_cache(3, 8)
    model(torch.zeros(3, 5, dtype=torch.int64), cache=cache, **({"iterations": iterations} if looped else {}))
    claimed = config.cache_bytes_per_token(iterations if looped else None, dtype.itemsize)
    held = sum(tensor.untyped_storage().nbytes() for tensor in cache.layers.values())
    assert claimed * 3 * (8 + 1) == held  # one column to spare: see Cache.grow


ROUTED = {
    "hold": InnerThinkingConfig(**WIDE, n_layers=4, n_kv_heads=2),
    **{rule: InnerThinkingConfig(**WIDE, n_layers=3, rule=rule, thinking_layers=(0, 2)) for rule in RULES},
    "sandwich": InnerThinkingConfig(**WIDE, n_layers=3, rule="paper_literal", wiring="sandwich", qk_norm=True),
    "all tokens": InnerThinkingConfig(**WIDE, n_layers=2, routing=False, rule="loop", step_encoding=False),
}


@pytest.mark.parametrize("config", ROUTED.values(), ids=ROUTED)
@pytest.mark.parametrize("capacity", [None, 0.5, 1.0, (0.9, 0.0, 0.3), (0.0, 0.0, 1.0), 0])
def test_routed_flops_agree_with_the_counter_within_one_percent(config: ModelConfig, capacity: Any) -> None:
    """At 20 positions every capacity here is a whole number of tokens, so that what is asked for is what runs."""
    if capacity is not None and not config.routing:
        capacity = None
    model = InnerThinkingTransformer(config).train()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(torch.zeros(2, 20, dtype=torch.int64), iterations=4, capacity=capacity)
    assert config.flops_per_token(4, 20, capacity) == pytest.approx(counter.get_total_flops() / 40, rel=0.01)


@pytest.mark.parametrize("capacity", [0.3, 0.7])
def test_flops_in_eval_are_those_of_the_tokens_that_went(capacity: Any) -> None:
    """A single row gathers the tokens over the threshold, in blocks of eight."""
    torch.manual_seed(0)
    model, ids = InnerThinkingTransformer(ROUTED["hold"]).eval(), torch.arange(40)[None]
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        out = model(ids, iterations=4, capacity=capacity)
    shares = ((out.selected[0].sum(dim=0) / MULTIPLE).ceil() * MULTIPLE / 40).tolist()  # by layer and pass
    went = model.config.flops_at_shares(shares, 40)
    exact = model.config.flops_at_shares(out.selected[0].double().mean(dim=0).tolist(), 40)
    assert model.executed_flops_per_token(out) == pytest.approx(exact) and exact <= went
    assert counter.get_total_flops() / 40 == pytest.approx(went, rel=0.01)
    assert min(map(min, shares)) > 0 and min(map(max, shares)) < 1


def test_training_a_routed_model_costs_three_forwards() -> None:
    config, ids = ROUTED["hold"], torch.zeros(2, 20, dtype=torch.int64)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        InnerThinkingTransformer(config).train()(ids, iterations=4).logits.sum().backward()
    assert config.training_flops_per_token(4, 20) == pytest.approx(counter.get_total_flops() / 40, rel=0.01)


def test_a_family_that_says_no_cost_is_refused() -> None:
    config = ModelConfig(vocab_size=5)
    for ask in (
        lambda: config.parameters,
        lambda: config.flops_per_token(1, 1),
        lambda: config.training_flops_per_token(1, 1),
        lambda: config.cache_bytes_per_token(1),
    ):
        with pytest.raises(NotImplementedError):
            ask()
