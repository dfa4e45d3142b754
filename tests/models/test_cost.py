"""What is counted is verified: parameters with the module, FLOPs with torch's counter, cache bytes with the tensors."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mull.models import (
    ModelConfig,
    RecurrentDepthConfig,
    RecurrentDepthTransformer,
    Transformer,
    TransformerConfig,
    cost,
)

WIDE = {"vocab_size": 50, "d_model": 48, "n_heads": 6}
COSTED = {
    "concat": RecurrentDepthConfig(**WIDE, n_core=2, n_kv_heads=2),
    "add": RecurrentDepthConfig(
        **WIDE, n_coda=2, injection="add", wiring="pre_norm", qk_norm=True, tie_embeddings=False
    ),
    "diagonal": RecurrentDepthConfig(**WIDE, n_prelude=0, n_coda=0, injection="diagonal", d_ff=10, exit_gate=True),
    "transformer": TransformerConfig(**WIDE, n_layers=3, n_kv_heads=3),
}


def counted(model, backward, **arguments):
    """FLOPs per token as torch counts them; attention as matrix products, since the CPU's own kernel is not counted."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
        out = model(torch.zeros(2, 17, dtype=torch.int64), **arguments)
        if backward:
            (out.logits.sum() + (0 if out.exit_logit is None else out.exit_logit.sum())).backward()
    return counter.get_total_flops() / (2 * 17)


@given(data=st.data())
def test_parameters_are_exactly_those_of_the_module(any_config, build, data):
    config = data.draw(any_config)
    assert cost.parameters(config) == sum(p.numel() for p in build(config).parameters())


@pytest.mark.parametrize("config", COSTED.values(), ids=COSTED)
def test_flops_agree_with_the_counter_within_one_percent(config):
    looped = isinstance(config, RecurrentDepthConfig)
    model = (RecurrentDepthTransformer if looped else Transformer)(config)
    iterations, arguments = (4, {"iterations": 4}) if looped else (None, {})
    claimed = cost.flops_per_token(config, iterations, 17)
    assert claimed == pytest.approx(counted(model, False, **arguments), rel=0.01)
    for window in (None, 2, 9) if looped else (None,):
        windowed = arguments | ({"backprop_iterations": window} if looped else {})
        claimed = cost.training_flops_per_token(config, iterations, 17, window)
        assert claimed == pytest.approx(counted(model, True, **windowed), rel=0.01)


@given(data=st.data(), iterations=st.integers(1, 4), dtype=st.sampled_from((torch.float32, torch.bfloat16)))
def test_cache_bytes_are_those_of_the_tensors(any_config, build, data, iterations, dtype):
    config = data.draw(any_config)
    looped = isinstance(config, RecurrentDepthConfig)
    model = build(config, dtype)
    cache = model.new_cache(3, 8)
    model(torch.zeros(3, 5, dtype=torch.int64), cache=cache, **({"iterations": iterations} if looped else {}))
    claimed = cost.cache_bytes_per_token(config, iterations if looped else None, dtype)
    held = sum(tensor.untyped_storage().nbytes() for tensor in cache.layers.values())
    assert claimed == cache.bytes_per_token
    assert claimed * 3 * 8 == cache.nbytes == held


def test_a_family_without_a_known_cost_is_refused():
    config = ModelConfig(vocab_size=5)
    for ask in (cost.parameters, lambda c: cost.flops_per_token(c, 1, 1), lambda c: cost.cache_bytes_per_token(c, 1)):
        with pytest.raises(TypeError, match="no cost is known for ModelConfig"):
            ask(config)
