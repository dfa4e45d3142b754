"""Layers that reach a few tokens back: convolution and window against slow twins, and how far a state is carried."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from mull.models import LanguageModel, RecurrentDepthConfig
from mull.models.convolution import Convolution
from mull.models.layers import Attention
from mull.models.placing import Sight, place

Build = Callable[..., LanguageModel]
SMALL: dict[str, Any] = {"vocab_size": 11, "d_model": 24, "n_heads": 6, "n_kv_heads": 2, "d_ff": 20, "max_length": 64}
CPU = torch.device("cpu")


@given(kernel=st.integers(1, 5), length=st.integers(1, 7), channels=st.integers(1, 4))
@settings(max_examples=30)
def test_the_convolution_is_torchs(kernel: int, length: int, channels: int) -> None:
    """Depthwise, causal, the newest token's weight first: torch has it last."""
    torch.manual_seed(0)
    convolution = Convolution(channels, kernel).double()
    x = torch.randn(2, length, channels, dtype=torch.float64)
    padded = F.pad(x.transpose(1, 2), (kernel - 1, 0))
    twin = F.conv1d(padded, convolution.weight.flip(0).T[:, None], groups=channels).transpose(1, 2)
    found = convolution(x, place((2, length), CPU, None, None, lambda _: None), (0, 0))
    torch.testing.assert_close(found, twin)


@pytest.mark.parametrize("near_heads", [0, 3, 6])
def test_windowed_heads_see_the_latest_tokens(near_heads: int) -> None:
    """Head by head and token by token: the first heads look at the last 3 keys, the others at all."""
    torch.manual_seed(0)
    window = {"window": 3, "window_heads": near_heads} if near_heads else {}
    config = RecurrentDepthConfig(**SMALL, **window, positions="none")
    attention = Attention(config).double()
    torch.nn.init.normal_(attention.qkv.weight)
    x = torch.randn(1, 8, 24, dtype=torch.float64)
    context = place((1, 8), CPU, None, None, lambda _: None, Sight(config.window or None))
    queries, keys, values = (part[0] for part in attention.project(x, None))
    expected = torch.zeros(8, 6, 4, dtype=torch.float64)
    for t in range(8):
        for head in range(6):
            first = max(0, t - 2) if head < near_heads else 0
            shared = head // 3  # three heads share keys and values
            scores = keys[first : t + 1, shared] @ queries[t, head] / 2
            expected[t, head] = scores.softmax(0) @ values[first : t + 1, shared]
    torch.testing.assert_close(attention(x, context, (0, 0))[0], attention.out(expected.flatten(1)))


NEAR = [
    ({"window": 3}, 2),
    ({"window": 3, "convolution": "mlp", "kernel": 3}, 4),
    ({"window": 2, "convolution": "attention", "kernel": 4}, 4),
]


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize(("options", "reach"), NEAR)
def test_each_iteration_carries_a_state_so_many_places_and_no_further(
    options: dict[str, Any], reach: int, cached: bool, build: Build
) -> None:
    """What makes iterations buy length: after 3 iterations the answer depends on 3 times the reach, exactly."""
    model = build(RecurrentDepthConfig(**SMALL, **options, n_prelude=0, n_core=1, n_coda=0, positions="none"))
    ids, t, iterations = torch.arange(20)[None] % 11, 19, 3
    other = ids.clone()

    def answer(tokens: torch.Tensor) -> torch.Tensor:
        cache = model.new_cache(1, 20) if cached else None
        if cache is not None:
            model(tokens[:, :7], iterations, cache=cache)
            tokens = tokens[:, 7:]
        return model(tokens, iterations, cache=cache).logits[0, -1].detach()

    for distance, matters in ((iterations * reach, True), (iterations * reach + 1, False)):
        other.copy_(ids)[0, t - distance] += 1
        assert torch.equal(answer(ids), answer(other)) != matters


def test_heads_without_a_window_reach_everything(build: Build) -> None:
    """The same model with half of its heads unbound sees the first token."""
    model = build(RecurrentDepthConfig(**SMALL, window=3, window_heads=3, n_prelude=0, n_coda=0))
    ids = torch.arange(20)[None] % 11
    other = ids.clone()
    other[0, 0] += 1
    assert not torch.equal(model(ids, 1).logits[0, -1], model(other, 1).logits[0, -1])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"window": -1}, "window must be 0"),
        ({"window_heads": 3}, "needs a window"),
        ({"window": 3, "window_heads": 9}, "0 .. n_heads 6"),
        ({"window": 3, "window_heads": 2}, "multiple of the 3 heads"),
        ({"kernel": 0}, "kernel must be positive"),
        ({"residual_scale": 0.0}, "residual_scale must be positive"),
        ({"damping": 1.5}, "damping must lie above 0"),
        ({"convolution": "everywhere"}, "'none', 'mlp', 'attention'"),
    ],
)
def test_values_out_of_range_are_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        RecurrentDepthConfig(**SMALL, **options)


def test_damping_moves_the_state_a_part_of_the_way(build: Build) -> None:
    """s <- (1 - a) s + a f(s), two iterations by hand from undamped single ones."""
    torch.manual_seed(0)
    whole = build(RecurrentDepthConfig(**SMALL))
    part = build(RecurrentDepthConfig(**SMALL, damping=0.3))
    part.load_state_dict(whole.state_dict())
    ids = torch.arange(5)[None]
    state = torch.zeros(1, 5, 24, dtype=torch.float64)
    for _ in range(2):
        state = 0.7 * state + 0.3 * whole(ids, 1, state=state).state
    torch.testing.assert_close(part(ids, 2).state, state)


@pytest.mark.parametrize("options", [{}, {"n_coda": 0}, {"tie_embeddings": False}, {"damping": 0.3}])
def test_the_answer_fed_back_is_that_of_the_state(options: dict[str, Any], build: Build) -> None:
    """s_i = (1 - a) s_{i-1} + a f(s_{i-1} + A(s_{i-1})), two iterations by hand from single ones of the same model
    without either; A is what the state would answer by itself, a coda left out, as the mean of its embeddings."""
    part = options.get("damping", 1.0)
    plain = build(RecurrentDepthConfig(**SMALL, **{**options, "damping": 1.0}))
    fed = build(RecurrentDepthConfig(**SMALL, **options, answer_feedback=True))
    fed.load_state_dict(plain.state_dict())
    ids, generator = torch.arange(5)[None], torch.Generator().manual_seed(0)
    state = torch.randn(1, 5, 24, dtype=torch.float64, generator=generator)
    table = plain.embedding.weight
    said = fed(ids, 2, state=state).state
    for _ in range(2):
        chances = torch.einsum(
            "btd,vd->btv", plain.final_norm(plain.final_norm(state)), table if plain.head is None else plain.head.weight
        ).softmax(dim=-1)
        mean = sum(chances[..., token, None] * plain.embed(torch.tensor([[token]])) for token in range(11))
        state = (1 - part) * state + part * plain(ids, 1, state=state + mean).state
    torch.testing.assert_close(said, state)
    assert (said - plain(ids, 2).state).abs().max() > 1e-2
    assert fed.config.parameters == plain.config.parameters
