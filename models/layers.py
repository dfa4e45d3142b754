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

from mull.models.cache import Cache, Cells, Slots
from mull.models.config import ModelConfig, RotaryLayout


@dataclass(frozen=True)
class Frame:
    """Where the tokens of one call stand; the same for every layer and iteration, so computed once.

    Attributes:
        positions: (T,) or (B, T) int64, counting tokens only.
        rotation: cos and sin, each (T, 1, W), or (B, T, 1, W) when rows differ; None without positions.
        mask: which keys each query sees, (T, S) or (B, 1, T, S) bool; None for plain causal order.
        cache: where keys and values are kept; None in training.
        cells: where in the cache these tokens stand; None when they follow on what all rows hold.
        counts: tokens by row, without padding.
        lanes: of a narrowed frame, whose tokens come as one row (1, N): the place (row, query) of each token among the
            queries (B', A) of its attention.
    """

    positions: Tensor
    rotation: tuple[Tensor, Tensor] | None
    mask: Tensor | None
    cache: Cache | None = None
    cells: Cells | None = None
    counts: list[int] | None = None
    lanes: tuple[Tensor, Tensor] | None = None

    def narrow(self, tokens: Tensor) -> Frame:
        """The frame of some tokens only, (N,) ascending indices into the B * T of this call, as one row (1, N).

        The call must keep its keys in a cache: there the tokens find those of the others.
        """
        assert self.cache is not None and self.lanes is None
        batch_size = self.cache.batch_size
        positions = self.positions.expand(batch_size, -1).flatten()[tokens]
        rotation = self.rotation
        if rotation is not None:
            width = rotation[0].shape[-1]
            cos, sin = (part.expand(batch_size, -1, 1, width).flatten(0, 1)[tokens][None] for part in rotation)
            rotation = (cos, sin)
        rows, lane, per_row = (tokens // self.positions.shape[-1]).unique_consecutive(
            return_inverse=True, return_counts=True
        )
        query = torch.arange(len(tokens), device=tokens.device) - (per_row.cumsum(0) - per_row)[lane]
        end = int(positions.max()) + 1
        queries = positions.new_zeros(len(rows), int(per_row.max()))
        queries[lane, query] = positions
        mask = (queries[:, :, None] >= torch.arange(end, device=tokens.device))[:, None]
        read_rows = rows if len(rows) < batch_size else None
        cells = Cells(rows=rows[lane], columns=positions, picked=None, read_rows=read_rows, end=end)
        return Frame(positions[None], rotation, mask, self.cache, cells, lanes=(lane, query))

    def finish(self, depth: int | None) -> None:
        """Take the call's positions into use; `depth`: what all of them have been iterated, where there is a loop."""
        assert self.cache is not None and self.counts is not None
        if depth is not None and self.cache.policy != "full":
            self.cache.hold(*self.stored(), depth)
        self.cache.advance(self.counts)

    def stored(self) -> tuple[Tensor, Tensor]:
        """Row and column of each token in the cache, (N,) each."""
        if self.cells is not None:
            return self.cells.rows, self.cells.columns
        assert self.cache is not None
        rows = torch.arange(self.cache.batch_size, device=self.positions.device)
        return rows.repeat_interleave(len(self.positions)), self.positions.repeat(len(rows))


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, in fp32 or better; cast back before the weight, as Huginn does."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == self.weight.dtype and x.dtype in (torch.float32, torch.float64):  # nothing to cast: one call
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return F.rms_norm(x.float(), self.weight.shape, None, self.eps).to(x.dtype) * self.weight


def rotation_angles(
    positions: Tensor, head_dim: int, base: float, layout: RotaryLayout, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """cos and signed sin of position * base^(-2j / W), j = 0 .. W/2 - 1, as `rotate` takes them: (..., T, 1, W).

    Both dimensions of pair j carry its angle; the first carries -sin. Computed in every forward: it costs next to
    nothing, and a stored table comes back as garbage from some loaders.
    """
    j = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float64)
    angles = positions.to(torch.float64)[..., None, None] * base ** (-j / head_dim)
    pair = -1 if layout == "interleaved" else -2
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([cos, cos], pair).flatten(-2).to(dtype), torch.stack([-sin, sin], pair).flatten(-2).to(dtype)


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor], layout: RotaryLayout) -> Tensor:
    """Rotary embedding of x (B, T, heads, W): each pair (a, b) becomes (a cos - b sin, b cos + a sin).

    Pairs are neighbours (interleaved) or a dimension of the first half and its counterpart in the second (half).
    """
    cos, signed_sin = rotation
    wide = x.to(cos.dtype)
    interleaved = layout == "interleaved"
    swapped = wide.unflatten(-1, (-1, 2) if interleaved else (2, -1)).flip(-1 if interleaved else -2).flatten(-2)
    return torch.addcmul(wide * cos, swapped, signed_sin).to(x.dtype)


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

    def forward(self, x: Tensor, frame: Frame, slot: Slots) -> Tensor:
        q, k, v = self.project(x, frame)
        q = q.transpose(1, 2) if frame.lanes is None else spread(q[0], frame)
        if frame.cache is None:
            k, v = k.transpose(1, 2), v.transpose(1, 2)
        else:
            k, v = frame.cache.extend(slot, k, v, frame.cells)
        return self.attend(q, k, v, frame.mask, frame.lanes)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, lanes: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """Answers of queries (B, H, T, W) to keys and values (B, K, S, W), mixed by `out`: (B, T, D), or (1, N, D) with
        the lanes of a narrowed frame."""
        causal = mask is None and q.shape[2] > 1  # one query sees every key there is
        heads = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=self.kv_heads != self.heads
        ).transpose(1, 2)
        if lanes is not None:
            heads = heads[lanes][None]
        return self.out(rearrange(heads, "b t h w -> b t (h w)"))

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


def spread(q: Tensor, frame: Frame) -> Tensor:
    """Queries of the tokens of a narrowed frame (N, H, W), by row as attention takes them: (B', H, A, W)."""
    assert frame.lanes is not None and frame.mask is not None
    rows, _, queries, _ = frame.mask.shape
    if queries == 1:
        return q[:, :, None]
    spread_out = q.new_zeros(rows, queries, *q.shape[1:])
    spread_out[frame.lanes] = q
    return spread_out.transpose(1, 2)


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

    def forward(self, x: Tensor, frame: Frame, slot: Slots) -> Tensor:
        return self.finish(x, self.attention(self.attention_norm(x), frame, slot))

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """What follows the attention: its residual, then the MLP with its own."""
        x = self.attention_post_norm(x + attended)
        return self.mlp_post_norm(x + self.mlp(self.mlp_norm(x)))
