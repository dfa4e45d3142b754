"""The layers all families are built from: RMSNorm, rotary positions, attention, gated MLP and their wiring.

    sandwich:  u = norm(x + Attention(norm(x)));  y = norm(u + MLP(norm(u)))     (Huginn, arXiv 2502.05171, section 3.2)
    pre_norm:  u = x + Attention(norm(x));        y = u + MLP(norm(u))

Shapes: B batch, T positions of this call, S positions attended to, D model width, H query heads, K key/value heads,
W head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from mull.models.cache import Cache, Slot
from mull.models.config import ModelConfig, RotaryLayout


@dataclass(frozen=True)
class Frame:
    """Where the tokens of one call stand; the same for every layer and iteration, so computed once.

    Attributes:
        rotation: cos and sin, each (T, 1, W/2), or (B, T, 1, W/2) when rows differ; None without positions.
        mask: which keys each query sees, (T, S) or (B, 1, T, S) bool; None for plain causal order.
        cache: where keys and values are kept; None in training.
    """

    rotation: tuple[Tensor, Tensor] | None
    mask: Tensor | None
    cache: Cache | None


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, in fp32 or better; cast back before the weight, as Huginn does."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
        return F.rms_norm(wide, (x.shape[-1],), None, self.eps).to(x.dtype) * self.weight


def rotation_angles(positions: Tensor, head_dim: int, base: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin of position * base^(-2j / W), j = 0 .. W/2 - 1, with an axis for the heads: (..., T, 1, W/2).

    Computed in every forward: it costs next to nothing, and a stored table comes back as garbage from some loaders.
    """
    j = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float64)
    angles = positions.to(torch.float64)[..., None, None] * base ** (-j / head_dim)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor], layout: RotaryLayout) -> Tensor:
    """Rotary embedding of x (B, T, heads, W): each pair (a, b) becomes (a cos - b sin, b cos + a sin)."""
    cos, sin = rotation
    wide = x.to(cos.dtype)
    a, b = wide.unflatten(-1, (-1, 2)).unbind(-1) if layout == "interleaved" else wide.chunk(2, dim=-1)
    turned = (a * cos - b * sin, b * cos + a * sin)
    return (torch.stack(turned, dim=-1).flatten(-2) if layout == "interleaved" else torch.cat(turned, dim=-1)).to(
        x.dtype
    )


class Attention(nn.Module):
    """Causal attention with grouped key/value heads. `qkv` holds the rows of Q, then K, then V, as Huginn does."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.n_heads, config.kv_heads, config.head_dim
        self.layout: RotaryLayout = config.rotary_layout
        self.qkv = nn.Linear(config.d_model, (self.heads + 2 * self.kv_heads) * self.head_dim, bias=False)
        self.out = nn.Linear(config.d_model, config.d_model, bias=False)
        shared = self.heads + self.kv_heads
        self.qk_bias = nn.Parameter(torch.zeros(shared, self.head_dim)) if config.qk_bias else None
        self.q_norm = RMSNorm(self.head_dim, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(self.head_dim, config.norm_eps) if config.qk_norm else None

    def forward(self, x: Tensor, frame: Frame, slot: Slot) -> Tensor:
        q, k, v = (rearrange(part, "b t h w -> b h t w") for part in self.project(x, frame))
        if frame.cache is not None:
            k, v = frame.cache.extend(slot, k, v)
        return self.attend(q, k, v, frame.mask)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Answers of queries (B, H, T, W) to keys and values (B, K, S, W), mixed by `out`: (B, T, D)."""
        causal = mask is None and q.shape[2] > 1  # one query sees every key there is
        heads = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=self.kv_heads != self.heads
        )
        return self.out(rearrange(heads, "b h t w -> b t (h w)"))

    def project(self, x: Tensor, frame: Frame) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (B, T, heads, W) each: bias, then norm, then rotation on queries and keys."""
        qkv = self.qkv(x).unflatten(-1, (-1, self.head_dim))
        qk, v = qkv.split([self.heads + self.kv_heads, self.kv_heads], dim=2)
        if self.qk_bias is not None:
            qk = qk + self.qk_bias.to(qk.dtype)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = qk.split([self.heads, self.kv_heads], dim=2)
            qk = torch.cat([self.q_norm(q), self.k_norm(k)], dim=2).to(v.dtype)
        if frame.rotation is not None:
            qk = rotate(qk, frame.rotation, self.layout)
        q, k = qk.split([self.heads, self.kv_heads], dim=2)
        return q, k, v

    def queries(self, x: Tensor, frame: Frame) -> Tensor:
        """Queries alone, (B, H, T, W): what `project` makes of the first rows of `qkv`."""
        q = F.linear(x, self.qkv.weight[: self.heads * self.head_dim]).unflatten(-1, (-1, self.head_dim))
        bias = None if self.qk_bias is None else self.qk_bias[: self.heads]
        return self.place(q, bias, self.q_norm, frame).transpose(1, 2)

    def keys_values(self, x: Tensor, frame: Frame) -> tuple[Tensor, Tensor]:
        """Keys and values alone, (B, T, K, W) each: what `project` makes of the other rows of `qkv`."""
        kv = F.linear(x, self.qkv.weight[self.heads * self.head_dim :]).unflatten(-1, (-1, self.head_dim))
        k, v = kv.chunk(2, dim=2)
        bias = None if self.qk_bias is None else self.qk_bias[self.heads :]
        return self.place(k, bias, self.k_norm, frame), v

    def place(self, x: Tensor, bias: Tensor | None, norm: RMSNorm | None, frame: Frame) -> Tensor:
        """Bias, norm and rotation of queries or keys (B, T, heads, W)."""
        placed = x if bias is None else x + bias.to(x.dtype)
        placed = placed if norm is None else norm(placed).to(x.dtype)
        return placed if frame.rotation is None else rotate(placed, frame.rotation, self.layout)


class GatedMLP(nn.Module):
    """down(SiLU(gate) * up); `gate_up` holds the rows of the gate first, as Huginn does."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_up = nn.Linear(config.d_model, 2 * config.mlp_width, bias=False)
        self.down = nn.Linear(config.mlp_width, config.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Layer(nn.Module):
    """Attention and MLP with residuals, wired as the head of this file says. (B, T, D) -> (B, T, D)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.mlp = GatedMLP(config)
        self.attention_norm = RMSNorm(config.d_model, config.norm_eps)
        self.mlp_norm = RMSNorm(config.d_model, config.norm_eps)
        sandwich = config.wiring == "sandwich"
        self.attention_post_norm = RMSNorm(config.d_model, config.norm_eps) if sandwich else nn.Identity()
        self.mlp_post_norm = RMSNorm(config.d_model, config.norm_eps) if sandwich else nn.Identity()

    def forward(self, x: Tensor, frame: Frame, slot: Slot) -> Tensor:
        return self.finish(x, self.attention(self.attention_norm(x), frame, slot))

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """What follows the attention: its residual, then the MLP with its own."""
        x = self.attention_post_norm(x + attended)
        return self.mlp_post_norm(x + self.mlp(self.mlp_norm(x)))
