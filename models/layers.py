"""The layers all families are built from: RMSNorm, rotary positions, attention, gated MLP and their wiring.

    sandwich:  u = norm(x + Attention(norm(x)));  y = norm(u + MLP(norm(u)))     (Huginn, arXiv 2502.05171, section 3.2)
    pre_norm:  u = x + Attention(norm(x));        y = u + MLP(norm(u))

Both branches may be scaled by a constant (`residual_scale`), heads may see the latest tokens only (`window`), and a
causal convolution may stand before attention or inside the MLP (convolution.py).

A `Context` (positions.py) says where the tokens of a call stand: their rotation, which keys each sees, and the cache. A
`Slot` is (layer, iteration): where `Context.keep` stores a layer's keys and values; it returns all that are seen.

Shapes: B batch, T positions of this call, S positions attended to, D model width, H query heads, K key/value heads,
W head width.
"""

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mull.models.cache import Slot
from mull.models.config import ModelConfig, RotaryLayout
from mull.models.convolution import Convolution
from mull.models.positions import Context
from mull.models.precision import wide
from mull.models.roles import Role

Join = tuple[nn.Module, Any]  # (module, what): x becomes module(x, what) before the first layer; see `through`


def is_plain(module: nn.Module) -> bool:
    """Whether a module is a matrix and nothing else, so that a part of its weight gives a part of its answer. What
    others put in its place (adapters, quantised or parametrised matrices) is called as the module that it is."""
    return type(module) is nn.Linear


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, in fp32 or better; cast back before the weight, as Huginn does."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight  # to look a parameter up takes a tenth of a norm's time in decoding
        if x.dtype == weight.dtype and x.dtype in (torch.float32, torch.float64):  # nothing to cast: one call
            return F.rms_norm(x, weight.shape, weight, self.eps)
        return F.rms_norm(wide(x), weight.shape, None, self.eps).to(x.dtype) * weight


def rotation_angles(positions: Tensor, head_dim: int, base: float, dtype: torch.dtype) -> Tensor:
    """cos and sin of position * base^(-j / W), j = 0, 2 .. W - 2: (..., T, 1, W/2, 2).

    Computed in every forward: it costs next to nothing, and a stored table comes back as garbage from some loaders.
    """
    j = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float64)
    angles = positions.to(torch.float64)[..., None, None] * base ** (-j / head_dim)
    return torch.stack([angles.cos(), angles.sin()], dim=-1).to(dtype)


def rotate(x: Tensor, rotation: Tensor, layout: RotaryLayout) -> Tensor:
    """Rotary embedding of x (B, T, heads, W): each pair (a, b) becomes (a cos - b sin, b cos + a sin).

    Pairs are neighbours (interleaved) or a dimension of the first half and its counterpart in the second (half).
    """
    exact = x.to(rotation.dtype)
    if layout == "interleaved" and not torch.compiler.is_compiling():  # neighbours are a complex number: one product
        turned = torch.view_as_complex(exact.unflatten(-1, (-1, 2))) * torch.view_as_complex(rotation)
        return torch.view_as_real(turned).flatten(-2).to(x.dtype)
    shape, pair = ((-1, 2), -1) if layout == "interleaved" else ((2, -1), -2)
    a, b = exact.unflatten(-1, shape).unbind(pair)
    cos, sin = rotation.unbind(-1)
    return torch.stack([a * cos - b * sin, b * cos + a * sin], pair).flatten(-2).to(x.dtype)


class Attention(nn.Module):
    """Attention with grouped key/value heads, causal or both ways. `qkv` holds the rows of Q, then K, then V, as Huginn
    does."""

    roles: ClassVar[dict[str, Role]] = {"out.weight": "output", "qk_bias": "vector"}

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.n_heads, config.kv_heads, config.head_dim
        self.layout: RotaryLayout = config.rotary_layout
        self.causal = config.causal
        self.qkv = nn.Linear(config.d_model, (self.heads + 2 * self.kv_heads) * self.head_dim, bias=False)
        self.out = nn.Linear(config.d_model, config.d_model, bias=False)
        shared = self.heads + self.kv_heads
        self.qk_bias = nn.Parameter(torch.zeros(shared, self.head_dim)) if config.qk_bias else None
        self.near_heads = config.near_heads
        self.q_norm = RMSNorm(self.head_dim, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(self.head_dim, config.norm_eps) if config.qk_norm else None

    def forward(self, x: Tensor, context: Context, slot: Slot) -> Tensor:
        queries, keys, values = self.project(x, context.rotation)
        return self.attend(queries, *context.keep(slot, keys, values), context)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, context: Context) -> Tensor:
        """Answers of queries (B, T, H, W) to keys and values (B, K, S, W), mixed by `out`: (B, T, D). Gathered queries
        are laid out by row first, so it is the context that calls `look`, once for each group."""
        near, far = self.near_heads, self.heads - self.near_heads
        if near == 0 or far == 0:
            heads = context.attend(self.look, queries, keys, values, near=far == 0)
        else:
            sharing = self.heads // self.kv_heads
            split = [near // sharing, far // sharing]
            parts = zip(queries.split([near, far], 2), keys.split(split, 1), values.split(split, 1), strict=True)
            answers = [context.attend(self.look, *part, near=first == 0) for first, part in enumerate(parts)]
            heads = torch.cat(answers, dim=2)
        return self.out(heads.flatten(-2).to(queries.dtype))

    def look(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Answers of queries (B, T, H, W) to keys and values (B, K, S, W), by head, (B, T, H, W). Without a mask order
        is causal, or all see all; a mask is bool, or is added to the scores."""
        q = q.transpose(1, 2).to(k.dtype)  # a cache may keep narrower numbers
        if mask is not None and mask.is_floating_point():
            mask = mask.to(k.dtype)
        shared = k.shape[1] != q.shape[1]
        if shared and mask is None and q.shape[2] == 1 and k.dtype.itemsize >= 4:  # narrower types lose by it
            # heads that share keys become so many queries of one head, and the keys are read once and not once a head
            queries = q.unflatten(1, (k.shape[1], -1)).squeeze(3)
            return F.scaled_dot_product_attention(queries, k, v).flatten(1, 2).unsqueeze(1)
        causal = self.causal and mask is None
        if q.shape[2] == 1:  # one query sees every key there is; a branch, since is_causal takes no symbol of a length
            causal = False
        answers = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=shared)
        return answers.transpose(1, 2)

    def project(self, x: Tensor, rotation: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, T, H, W), keys and values (B, T, K, W) of x (B, T, D)."""
        turned, values = self.turn(self.qkv(x), rotation, 0, self.heads + self.kv_heads)
        queries, keys = turned.split([self.heads, self.kv_heads], dim=2)
        return queries, keys, values

    def queries(self, x: Tensor, rotation: Tensor | None) -> Tensor:
        """The queries of `project` alone."""
        rows = slice(self.heads * self.head_dim)
        return self.turn(self.part(x, rows), rotation, 0, self.heads)[0]

    def keys_values(self, x: Tensor, rotation: Tensor | None) -> tuple[Tensor, Tensor]:
        """The keys and values of `project` alone."""
        rows = slice(self.heads * self.head_dim, None)
        return self.turn(self.part(x, rows), rotation, self.heads, self.heads + self.kv_heads)

    def part(self, x: Tensor, rows: slice) -> Tensor:
        """What some rows of `qkv` give."""
        return F.linear(x, self.qkv.weight[rows]) if is_plain(self.qkv) else self.qkv(x)[..., rows]

    def turn(self, projected: Tensor, rotation: Tensor | None, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Bias, then norm, then rotation on the heads that have them: queries and keys, numbered from 0 to H + K - 1.

        `projected`, (B, T, n W), is what some rows of `qkv` give: heads `first` to `last` - 1, then values or nothing.
        Returns those heads, (B, T, last - first, W), and the values, (B, T, K or 0, W).
        """
        heads = projected.unflatten(-1, (-1, self.head_dim))
        count = last - first
        turned, values = heads.split([count, heads.shape[2] - count], dim=2)
        bias, q_norm, k_norm = self.qk_bias, self.q_norm, self.k_norm
        if bias is not None:  # to slice what is taken whole would cost one part in a hundred of decoding
            own = bias if count == self.heads + self.kv_heads else bias[first:last]
            turned = turned + own.to(turned.dtype)
        if q_norm is not None and k_norm is not None:
            n_queries = max(0, self.heads - first)
            parts = [(q_norm, turned[:, :, :n_queries]), (k_norm, turned[:, :, n_queries:])]
            turned = torch.cat([norm(part) for norm, part in parts if part.shape[2]], dim=2).to(projected.dtype)
        return (turned if rotation is None else rotate(turned, rotation, self.layout)), values


class GatedMLP(nn.Module):
    """down(SiLU(gate) * up), or down(convolution(SiLU(gate) * up)); `gate_up` holds the rows of the gate first, as
    Huginn does."""

    roles: ClassVar[dict[str, Role]] = {"down.weight": "output"}

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_up = nn.Linear(config.d_model, 2 * config.mlp_width, bias=False)
        self.down = nn.Linear(config.mlp_width, config.d_model, bias=False)
        self.convolution = Convolution(config.mlp_width, config.kernel) if config.convolution == "mlp" else None

    def forward(self, x: Tensor, context: Context, slot: Slot) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        inner = F.silu(gate) * up
        if self.convolution is not None:
            inner = self.convolution(inner, context, slot)
        return self.down(inner)


class Layer(nn.Module):
    """Attention and MLP with residuals, wired as the head of this file says. (B, T, D) -> (B, T, D)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.mlp = GatedMLP(config)
        self.attention_norm = RMSNorm(config.d_model, config.norm_eps)
        self.mlp_norm = RMSNorm(config.d_model, config.norm_eps)
        self.convolution = Convolution(config.d_model, config.kernel) if config.convolution == "attention" else None
        self.residual_scale = config.residual_scale
        sandwich = config.wiring == "sandwich"
        self.attention_post_norm = RMSNorm(config.d_model, config.norm_eps) if sandwich else nn.Identity()
        self.mlp_post_norm = RMSNorm(config.d_model, config.norm_eps) if sandwich else nn.Identity()

    def forward(self, x: Tensor, context: Context, slot: Slot) -> Tensor:
        normed = self.attention_norm(x)
        if self.convolution is not None:
            normed = normed + self.convolution(normed, context, slot)
        return self.after_attention(x, self.attention(normed, context, slot), context, slot)

    def after_attention(self, x: Tensor, attended: Tensor, context: Context, slot: Slot) -> Tensor:
        """The residual of attention, from x to `attended`, (B, T, D) each; then the MLP with its own."""
        x = self.attention_post_norm(x + self.scaled(attended))
        return self.mlp_post_norm(x + self.scaled(self.mlp(self.mlp_norm(x), context, slot)))

    def scaled(self, branch: Tensor) -> Tensor:
        """What a branch adds to the residual stream."""
        return branch if self.residual_scale == 1 else self.residual_scale * branch


def through(
    layers: Iterable[nn.Module], x: Tensor, context: Context, first: int, iteration: int, join: Join | None = None
) -> Tensor:
    """x (B, T, D), joined where there is a `join`, through layers; the n-th keeps its keys in slot (first + n,
    iteration), n from 0."""
    if join is not None:
        x = join[0](x, join[1])
    for index, layer in enumerate(layers, start=first):
        x = layer(x, context, (index, iteration))
    return x
