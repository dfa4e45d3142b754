"""Rotation, norm, attention and wiring against slow, obvious references."""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mull.models import LanguageModel, RecurrentDepthConfig
from mull.models.layers import Attention, GatedMLP, Layer, RMSNorm, rotate, rotation_angles
from mull.models.positions import Context

Build = Callable[..., LanguageModel]
Small = Callable[..., RecurrentDepthConfig]
Tokens = Callable[..., Tensor]
Module = TypeVar("Module", bound=nn.Module)

PLAIN = Context(positions=torch.arange(5), rotation=None, end=5)


def seeded(module: Module) -> Module:
    """fp64, with every parameter random."""
    torch.manual_seed(0)
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return module


def angles(positions: Sequence[int], width: int, base: float = 100.0) -> Tensor:
    return rotation_angles(torch.as_tensor(positions), width, base, torch.float64)


@pytest.mark.parametrize(("layout", "compiling"), [("interleaved", False), ("interleaved", True), ("half", False)])
def test_rotation_is_multiplication_by_a_complex_number(
    layout: str, compiling: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In both forms that neighbours take: compilers cannot fuse complex numbers."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    torch.manual_seed(0)
    width, base, x = 6, 100.0, torch.randn(2, 5, 3, 6, dtype=torch.float64)
    turned = rotate(x, angles(range(5), width, base), layout)
    for t in range(5):
        for j in range(width // 2):
            a, b = (2 * j, 2 * j + 1) if layout == "interleaved" else (j, j + width // 2)
            factor = torch.polar(torch.ones(()).double(), torch.tensor(t * base ** (-2 * j / width)).double())
            expected = torch.complex(x[:, t, :, a], x[:, t, :, b]) * factor
            torch.testing.assert_close(torch.complex(turned[:, t, :, a], turned[:, t, :, b]), expected)


def test_angles_are_exact_where_fp32_would_not_be() -> None:
    cos, sin = rotation_angles(torch.tensor([100_003]), 4, 10_000.0, torch.float32).unbind(-1)
    torch.testing.assert_close(cos.flatten()[0].item(), math.cos(100_003), rtol=0, atol=1e-6)
    torch.testing.assert_close(sin.flatten()[1].item(), math.sin(100_003 / 100), rtol=0, atol=1e-6)


@pytest.mark.parametrize("layout", ["interleaved", "half"])
def test_scores_depend_on_the_distance_alone(layout: str) -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 4, 1, 8, dtype=torch.float64)
    near, far = (
        torch.einsum(
            "bthw,bshw->ts",
            rotate(q, angles(at, 8), layout),
            rotate(k, angles(at, 8), layout),
        )
        for at in ([0, 1, 5, 9], [1000, 1001, 1005, 1009])
    )
    torch.testing.assert_close(near, far, rtol=0, atol=1e-10)
    assert (near - torch.einsum("bthw,bshw->ts", q, k)).abs().max() > 0.1


def test_the_two_layouts_are_one_model_with_the_dimensions_of_a_head_permuted(
    build: Build, small: Small, tokens: Tokens
) -> None:
    model, other = build(small(qk_norm=True)), build(small(qk_norm=True, rotary_layout="half"), seed=1)
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    halves = torch.tensor([0, 2, 1, 3])  # (0, 1), (2, 3) rotate together -> (0, 2), (1, 3) do
    for name, weight in weights.items():
        if name.endswith("qkv.weight"):
            heads = weight.view(10, 4, -1)  # 6 query, 2 key, 2 value heads
            heads[:8] = heads[:8, halves]
        elif name.endswith("qk_bias") or name.endswith(("q_norm.weight", "k_norm.weight")):
            weights[name] = weight[..., halves]
    ids = tokens(model.config, 2, 7)
    assert (model(ids, 3).logits - other(ids, 3).logits).abs().max() > 1e-3
    other.load_state_dict(weights)
    torch.testing.assert_close(model(ids, 3).logits, other(ids, 3).logits)


def test_norm_is_computed_wide_and_cast_back_before_the_weight() -> None:
    torch.manual_seed(0)
    norm = RMSNorm(64, eps=1e-6)
    norm.weight.data = 1 + torch.randn(64) / 3
    x = 3 * torch.randn(50, 64).bfloat16()
    wide = x.float() * torch.rsqrt(x.float().square().mean(dim=-1, keepdim=True) + 1e-6)
    assert norm(x).dtype == torch.float32  # a wide weight keeps the residual stream wide
    torch.testing.assert_close(norm(x), wide.bfloat16() * norm.weight, rtol=0, atol=0)
    norm.bfloat16()
    late = (wide * norm.weight.float()).bfloat16()
    assert torch.equal(norm(x), wide.bfloat16() * norm.weight)
    assert not torch.equal(norm(x), late)


def test_eps_stands_inside_the_root() -> None:
    norm = RMSNorm(2, eps=7.0)
    torch.testing.assert_close(norm(torch.tensor([3.0, 3.0])), torch.tensor([0.75, 0.75]))


@pytest.mark.parametrize("qk_norm", [False, True])
def test_attention_is_bias_then_norm_then_rotation_then_masked_softmax(small: Small, qk_norm: bool) -> None:
    config = small(qk_norm=qk_norm, n_kv_heads=2)
    attention = seeded(Attention(config))
    x = torch.randn(1, 5, 24, dtype=torch.float64)
    context = Context(positions=torch.arange(5), rotation=angles(range(5), 4), end=5)

    rows = (x[0] @ attention.qkv.weight.T).view(5, 10, 4)
    q, k, v = rows[:, :6] + attention.qk_bias[:6], rows[:, 6:8] + attention.qk_bias[6:], rows[:, 8:]
    if qk_norm:
        q, k = attention.q_norm(q), attention.k_norm(k)
    q, k = (rotate(part[None], context.rotation, "interleaved")[0] for part in (q, k))
    heads = torch.zeros(5, 6, 4, dtype=torch.float64)
    for t in range(5):
        for h in range(6):
            scores = k[: t + 1, h // 3] @ q[t, h] / 2  # sqrt(4)
            heads[t, h] = scores.softmax(dim=0) @ v[: t + 1, h // 3]
    torch.testing.assert_close(attention(x, context, (0, 0))[0], heads.flatten(1) @ attention.out.weight.T)


def test_grouped_heads_equal_repeated_heads(small: Small) -> None:
    grouped, full = seeded(Attention(small())), seeded(Attention(small(n_kv_heads=6)))
    rows, bias = grouped.qkv.weight.view(10, 4, 24), grouped.qk_bias
    repeat = [part.repeat_interleave(3, dim=0) for part in (rows[6:8], rows[8:], bias[6:])]
    full.qkv.weight.data = torch.cat([rows[:6], repeat[0], repeat[1]]).flatten(0, 1)
    full.qk_bias.data = torch.cat([bias[:6], repeat[2]])
    full.out.weight.data = grouped.out.weight.data
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    torch.testing.assert_close(grouped(x, PLAIN, (0, 0)), full(x, PLAIN, (0, 0)))


def test_the_gate_comes_first(small: Small) -> None:
    mlp = seeded(GatedMLP(small()))
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    gate, up = x @ mlp.gate_up.weight[:20].T, x @ mlp.gate_up.weight[20:].T
    torch.testing.assert_close(mlp(x, PLAIN, (0, 0)), (gate / (1 + torch.exp(-gate)) * up) @ mlp.down.weight.T)


@pytest.mark.parametrize("wiring", ["sandwich", "pre_norm"])
def test_wiring(small: Small, wiring: str) -> None:
    layer = seeded(Layer(small(wiring=wiring)))
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    n = [lambda y, w=norm.weight: F.rms_norm(y, (24,), w, 1e-6) for norm in (layer.attention_norm, layer.mlp_norm)]
    u = x + layer.attention(n[0](x), PLAIN, (0, 0))
    if wiring == "sandwich":
        u = F.rms_norm(u, (24,), layer.attention_post_norm.weight, 1e-6)
    y = u + layer.mlp(n[1](u), PLAIN, (0, 0))
    if wiring == "sandwich":
        y = F.rms_norm(y, (24,), layer.mlp_post_norm.weight, 1e-6)
    torch.testing.assert_close(layer(x, PLAIN, (0, 0)), y)


def test_tokens_are_scaled_by_the_root_of_the_width(build: Build, small: Small, tokens: Tokens) -> None:
    model = build(small())
    ids = tokens(model.config, 2, 3)
    torch.testing.assert_close(model.embed(ids), model.embedding.weight[ids] * math.sqrt(24))


@pytest.mark.parametrize("tied", [True, False])
def test_the_head_is_the_embedding_or_its_own(build: Build, small: Small, tied: bool) -> None:
    model = build(small(tie_embeddings=tied))
    assert ("head.weight" in model.state_dict()) is not tied
    x = torch.randn(1, 2, 24, dtype=torch.float64)
    weight = model.embedding.weight if tied else model.head.weight
    torch.testing.assert_close(model.logits(x), model.final_norm(x) @ weight.T)


def test_no_table_is_stored(build: Build, small: Small) -> None:
    """A rotary table in a checkpoint comes back rounded or as garbage; the state dict holds parameters only."""
    model = build(small())
    assert not list(model.buffers())
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}
