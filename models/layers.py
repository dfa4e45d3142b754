"""The layers all families are built from: RMSNorm, rotary positions, attention, gated MLP and their wiring.

    sandwich:  u = norm(x + Attention(norm(x)));  y = norm(u + MLP(norm(u)))     (Huginn, arXiv 2502.05171, section 3.2)
    pre_norm:  u = x + Attention(norm(x));        y = u + MLP(norm(u))

Shapes: B batch, T positions of this call, S positions attended to, D model width, H query heads, K key/value heads,
W head width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mull.models.cache import Cache, Cells, Slot
from mull.models.config import ModelConfig, RotaryLayout

Before = tuple[nn.Module, Tensor]  # see `run`


@dataclass(frozen=True)
class Lanes:
    """Where tokens that come as one row (1, N) stand among the queries (B', A) of an attention, which is by row.

    Attributes:
        rows: (B',) int64, ascending, the rows of the call that have a token.
        width: A, queries of a row.
        places: (N,) int64 into the B' * A, the place of each token.
        occupants: (B' * A,) int64 into the N, the token at each place; where there is none the first, whose answer
            there nobody collects.
        full: every place is taken, in order.
        mask: which keys each query sees, (B', 1, A, S) bool, or what is added to its scores; no key is read beyond S.
    """

    rows: Tensor
    width: int
    places: Tensor
    occupants: Tensor
    full: bool
    mask: Tensor | None = None

    @staticmethod
    def of(tokens: Tensor, length: int, block: int = 1) -> Lanes:
        """Places of tokens, (N,) ascending indices into the B * T of a call of T = length; A is a multiple of block."""
        rows, row, per_row = (tokens // length).unique_consecutive(return_inverse=True, return_counts=True)
        count = torch.arange(len(tokens), device=tokens.device)
        width = -(-int(per_row.max()) // block) * block
        places = row * width + count - (per_row.cumsum(0) - per_row)[row]
        occupants = tokens.new_zeros(len(rows) * width).index_copy_(0, places, count)
        return Lanes(rows, width, places, occupants, len(tokens) == len(occupants))

    def spread(self, x: Tensor) -> Tensor:
        """One row of tokens (1, N, ...) -> (B', A, ...)."""
        placed = x[0] if self.full else x[0].index_select(0, self.occupants)
        return placed.unflatten(0, (len(self.rows), self.width))

    def collect(self, x: Tensor) -> Tensor:
        """(B', A, ...) -> the tokens as one row (1, N, ...)."""
        placed = x.flatten(0, 1)
        return (placed if self.full else placed.index_select(0, self.places))[None]

    def read(self, x: Tensor) -> Tensor:
        """Keys or values (B, K, S or more, W) -> those that the queries may see, (B', K, S, W)."""
        assert self.mask is not None
        seen = x.narrow(2, 0, self.mask.shape[-1])
        return seen if len(seen) == len(self.rows) else seen[self.rows]


@dataclass(frozen=True)
class Frame:
    """Where the tokens of one call stand; the same for every layer and iteration, so computed once.

    Attributes:
        positions: (T,) or (B, T) int64, counting tokens only.
        rotation: cos and sin, (T, 1, W/2, 2), or (B, T, 1, W/2, 2) when rows differ; None without positions.
        mask: which keys each query sees, (T, S) or (B, 1, T, S) bool; None for plain causal order.
        cache: where keys and values are kept; None in training.
        cells: where in the cache these tokens stand; None when they follow on what all rows hold.
        counts: tokens by row, without padding.
        lanes: of a narrowed frame, whose tokens come as one row (1, N): their places among the queries, and what these
            see, by runs of tokens whose attention is one call each.
    """

    positions: Tensor
    rotation: Tensor | None
    mask: Tensor | None
    cache: Cache | None = None
    cells: Cells | None = None
    counts: list[int] | None = None
    lanes: Sequence[Lanes] | None = None

    def placed(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """Positions (1, N) and rotation (1, N, 1, W/2, 2) of some tokens, (N,) indices into the B * T of this call."""
        index = tokens % self.positions.shape[-1] if self.positions.dim() == 1 else tokens
        rotation = None if self.rotation is None else self.rotation.flatten(0, -4).index_select(0, index)[None]
        return self.positions.flatten()[index][None], rotation

    def narrow(self, tokens: Tensor) -> Frame:
        """The frame of some tokens only, (N,) ascending indices into the B * T of this call, as one row (1, N).

        The call must keep its keys in a cache: there the tokens find those of the others.
        """
        assert self.cache is not None and self.lanes is None
        positions, rotation = self.placed(tokens)
        lanes = Lanes.of(tokens, self.positions.shape[-1])
        end = int(positions.max()) + 1
        mask = (lanes.spread(positions)[:, :, None] >= torch.arange(end, device=tokens.device))[:, None]
        read_rows = lanes.rows if len(lanes.rows) < self.cache.batch_size else None
        cells = Cells(tokens // self.positions.shape[-1], positions[0], None, read_rows, end)
        return Frame(positions, rotation, None, self.cache, cells, lanes=[replace(lanes, mask=mask)])

    def window(self, first: int, count: int, iteration: int) -> Frame | None:
        """This frame with what `count` layers hold at one iteration in place of the cache, as layers 0, 1, ...; None
        unless it is of one token a row that follows on what all rows hold, two positions or more: compilers take 0 and
        1 for special cases."""
        if self.cache is None or self.cells is not None or self.lanes is not None or self.positions.shape[-1] != 1:
            return None
        if self.cache.length < 2:
            return None
        window = self.cache.window(first, count, iteration, 1)
        return Frame(self.positions, self.rotation, None, window)  # type: ignore[arg-type]  # all that a layer asks for

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
        weight = self.weight  # to look a parameter up takes a tenth of a norm's time in decoding
        if x.dtype == weight.dtype and x.dtype in (torch.float32, torch.float64):  # nothing to cast: one call
            return F.rms_norm(x, weight.shape, weight, self.eps)
        return F.rms_norm(x.float(), weight.shape, None, self.eps).to(x.dtype) * weight


def rotation_angles(positions: Tensor, head_dim: int, base: float, dtype: torch.dtype) -> Tensor:
    """cos and sin of position * base^(-2j / W), j = 0 .. W/2 - 1: (..., T, 1, W/2, 2).

    Computed in every forward: it costs next to nothing, and a stored table comes back as garbage from some loaders.
    """
    j = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float64)
    angles = positions.to(torch.float64)[..., None, None] * base ** (-j / head_dim)
    return torch.stack([angles.cos(), angles.sin()], dim=-1).to(dtype)


def rotate(x: Tensor, rotation: Tensor, layout: RotaryLayout) -> Tensor:
    """Rotary embedding of x (B, T, heads, W): each pair (a, b) becomes (a cos - b sin, b cos + a sin).

    Pairs are neighbours (interleaved) or a dimension of the first half and its counterpart in the second (half).
    """
    wide = x.to(rotation.dtype)
    if layout == "interleaved" and not torch.compiler.is_compiling():  # neighbours are a complex number: one product
        turned = torch.view_as_complex(wide.unflatten(-1, (-1, 2))) * torch.view_as_complex(rotation)
        return torch.view_as_real(turned).flatten(-2).to(x.dtype)
    shape, pair = ((-1, 2), -1) if layout == "interleaved" else ((2, -1), -2)
    a, b = wide.unflatten(-1, shape).unbind(pair)
    cos, sin = rotation.unbind(-1)
    return torch.stack([a * cos - b * sin, b * cos + a * sin], pair).flatten(-2).to(x.dtype)


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
        q, k, v = self.project(x, frame)
        if frame.cache is None:
            k, v = k.transpose(1, 2), v.transpose(1, 2)
        else:
            k, v = frame.cache.extend(slot, k, v, frame.cells)
        return self.attend(q, k, v, frame)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, frame: Frame) -> Tensor:
        """Answers of queries (B, T, H, W) to keys and values (B, K, S, W), mixed by `out`: (B, T, D). In a narrowed
        frame queries and answers are one row, (1, N, ...)."""
        if frame.lanes is None:
            heads = self.look(q, k, v, frame.mask)
        else:
            runs = q.split([len(lanes.places) for lanes in frame.lanes], dim=1)
            answers = [
                lanes.collect(self.look(lanes.spread(run), lanes.read(k), lanes.read(v), lanes.mask))
                for run, lanes in zip(runs, frame.lanes, strict=True)
            ]
            heads = answers[0] if len(answers) == 1 else torch.cat(answers, dim=1)
        return self.out(heads.flatten(-2).to(q.dtype))

    def look(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Answers of queries (B, T, H, W), by head, (B, T, H, W). Without a mask order is causal."""
        q = q.transpose(1, 2).to(k.dtype)  # a cache may keep narrower numbers
        shared = self.kv_heads != self.heads
        if shared and mask is None and q.shape[2] == 1 and k.dtype.itemsize >= 4:  # narrower types lose by it
            return self.look_once(q, k, v).transpose(1, 2)
        causal = mask is None and q.shape[2] > 1  # one query sees every key there is
        answers = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=shared)
        return answers.transpose(1, 2)

    def look_once(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Answers of one query (B, H, 1, W) to all keys. Heads that share keys become so many queries of one head, and
        the keys are read once and not once a head."""
        queries = q.unflatten(1, (self.kv_heads, -1)).squeeze(3)
        return F.scaled_dot_product_attention(queries, k, v).flatten(1, 2).unsqueeze(2)

    def project(self, x: Tensor, frame: Frame) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (B, T, heads, W) each: bias, then norm, then rotation on queries and keys."""
        qkv = self.qkv(x).unflatten(-1, (-1, self.head_dim))
        qk, v = qkv.split([self.heads + self.kv_heads, self.kv_heads], dim=2)
        bias, q_norm, k_norm = self.qk_bias, self.q_norm, self.k_norm
        if bias is not None:
            qk = qk + bias.to(qk.dtype)
        if q_norm is not None and k_norm is not None:
            q, k = qk.split([self.heads, self.kv_heads], dim=2)
            qk = torch.cat([q_norm(q), k_norm(k)], dim=2).to(v.dtype)
        if frame.rotation is not None:
            qk = rotate(qk, frame.rotation, self.layout)
        q, k = qk.split([self.heads, self.kv_heads], dim=2)
        return q, k, v

    def queries(self, x: Tensor, rotation: Tensor | None) -> Tensor:
        """Queries alone, (B, T, H, W): what `project` makes of the first rows of `qkv`."""
        q = F.linear(x, self.qkv.weight[: self.heads * self.head_dim]).unflatten(-1, (-1, self.head_dim))
        bias = None if self.qk_bias is None else self.qk_bias[: self.heads]
        return self.place(q, bias, self.q_norm, rotation)

    def keys_values(self, x: Tensor, rotation: Tensor | None) -> tuple[Tensor, Tensor]:
        """Keys and values alone, (B, T, K, W) each: what `project` makes of the other rows of `qkv`."""
        kv = F.linear(x, self.qkv.weight[self.heads * self.head_dim :]).unflatten(-1, (-1, self.head_dim))
        k, v = kv.chunk(2, dim=2)
        bias = None if self.qk_bias is None else self.qk_bias[self.heads :]
        return self.place(k, bias, self.k_norm, rotation), v

    def place(self, x: Tensor, bias: Tensor | None, norm: RMSNorm | None, rotation: Tensor | None) -> Tensor:
        """Bias, norm and rotation of queries or keys (B, T, heads, W)."""
        placed = x if bias is None else x + bias.to(x.dtype)
        placed = placed if norm is None else norm(placed).to(x.dtype)
        return placed if rotation is None else rotate(placed, rotation, self.layout)


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


def run(
    layers: Iterable[nn.Module], x: Tensor, frame: Frame, first: int, iteration: int, before: Before | None = None
) -> Tensor:
    """x (B, T, D) through layers that are numbered from `first` in the cache; `before` them through a module that also
    takes a tensor which is the same in every iteration."""
    if before is not None:
        x = before[0](x, before[1])
    for index, layer in enumerate(layers, start=first):
        x = layer(x, frame, (index, iteration))
    return x
