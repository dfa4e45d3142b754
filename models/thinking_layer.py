"""ThinkingLayer: a transformer layer that thinks again about some of its tokens, pass by pass.

    Y(0) = phi(0) * f(X);   Y(t) = Y(t-1) + phi(t) * w(t) f(Y(t-1)) for the tokens in S(t), otherwise Y(t-1)

`inner_thinking.py` has the equations in full, their options and why they differ from the paper's. Here they run: which
tokens go (`decide`), with which keys (`Held`), what a pass makes of those that go (`moved`) and of the others
(`skipped`). No state survives a call: the passes share a `Held` that lives as long as `think`.

Shapes: B batch, T positions of this call, k positions that take a pass, S positions attended to, D model width, K
key/value heads, W head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mull.models.cache import Slot
from mull.models.layers import Frame, Layer
from mull.models.loop import Iterations, iterate
from mull.models.routing import Select, auxiliary, choose, expected_thresholds

if TYPE_CHECKING:
    from mull.models.inner_thinking import InnerThinkingConfig


@dataclass(frozen=True)
class Plan:
    """How the thinking layers of one call think.

    Attributes:
        iterations: R, or (B,) with a count per row; a row takes its first passes and holds from then on.
        capacity: share of the tokens for each of the R - 1 routed passes.
        select: how tokens are selected.
        learns: whether the auxiliary loss is wanted.
        valid: (B, T) bool, false at padding; None without padding.
        block: tokens are gathered in multiples of this; see `choose`.
    """

    iterations: Iterations
    capacity: tuple[float, ...]
    select: Select
    learns: bool
    valid: Tensor | None
    block: int = 1

    def eligible(self, t: int) -> Tensor | None:
        """(B, T) or (B, 1) bool, the tokens that may take pass t; None for all."""
        if not isinstance(self.iterations, Tensor):
            return self.valid
        goes_on = (t < self.iterations)[:, None]
        return goes_on if self.valid is None else goes_on & self.valid


class Held:
    """The keys and values that a layer has of its tokens, (B, T, K, W) each, and whose state moved on since."""

    def __init__(self, tokens: Tensor, block: int) -> None:
        self.block = block
        self.stale = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        self.pair: tuple[Tensor, Tensor] | None = None

    def refreshed(self, layer: Layer, y: Tensor, frame: Frame) -> tuple[Tensor, Tensor]:
        """Keys and values of states y: projected where stale, reused elsewhere."""
        chosen = None if self.pair is None else choose(self.stale, self.block)
        if self.pair is None or chosen is None:
            self.pair = layer.attention.keys_values(layer.attention_norm(y), frame)
        elif chosen.index.shape[1]:
            part = chosen.frame(frame, y.shape[1], y.shape[1])
            new = layer.attention.keys_values(layer.attention_norm(chosen.gather(y)), part)
            self.pair = (chosen.scatter(self.pair[0], new[0]), chosen.scatter(self.pair[1], new[1]))
        self.stale = torch.zeros_like(self.stale)
        return self.pair


@dataclass(frozen=True)
class Decision:
    """What a router decided at one pass: the tokens (B, T) bool, and its loss where one is wanted."""

    selected: Tensor
    auxiliary_loss: Tensor | None


class ThinkingLayer(Layer):
    """See the head of this file. `forward` is one pass over all tokens, f."""

    thresholds: Tensor

    def __init__(self, config: InnerThinkingConfig) -> None:
        super().__init__(config)
        self.config = config
        self.step_encoding: nn.Parameter | None = None  # phi, (passes, D)
        self.router: nn.Parameter | None = None  # r, (routed passes, D)
        if config.step_encoding:
            start = torch.full((config.mean_iterations, config.d_model), config.first_scale)
            start[0] = 1
            self.step_encoding = nn.Parameter(start)
        if config.routing:
            routed = max(1, config.mean_iterations - 1)
            self.router = nn.Parameter(torch.empty(routed, config.d_model))
            self.register_buffer("thresholds", expected_thresholds().repeat(routed, 1))  # h, (routed passes, G)

    def think(self, x: Tensor, frame: Frame, index: int, plan: Plan) -> tuple[Tensor, list[Decision]]:
        """All passes over x (B, T, D): the last state, and the decisions of the routed passes."""
        held, decisions = Held(x, plan.block), list[Decision]()

        def one_pass(y: Tensor, t: int) -> Tensor:
            if t == 0:
                return (self.phi(0) * self(y, frame, (index, 0))).to(y.dtype)
            y, decision = self.routed_pass(y, frame, (index, t), plan, held)
            decisions.append(decision)
            return y

        total = int(plan.iterations.max()) if isinstance(plan.iterations, Tensor) else plan.iterations
        for _, y in iterate(one_pass, x, total):
            x = y
        return x, decisions

    def routed_pass(self, y: Tensor, frame: Frame, slot: Slot, plan: Plan, held: Held) -> tuple[Tensor, Decision]:
        """Y(t-1) -> Y(t), both (B, T, D); `slot` is (layer, t)."""
        t = slot[1]
        if plan.capacity[t - 1] == 0 and self.config.holds:  # nothing moves, and nobody asks for keys
            return y, Decision(torch.zeros_like(held.stale), None)
        decision, weight = self.decide(y, t, plan)
        chosen = choose(decision.selected, plan.block)
        new = self.skipped(y, weight, t, plan.eligible(t))
        if frame.cache is not None or chosen is None or chosen.index.shape[1]:
            keys, values = held.refreshed(self, y, frame)
            if frame.cache is None:
                keys, values = keys.transpose(1, 2), values.transpose(1, 2)
            else:
                keys, values = frame.cache.extend(slot, keys, values, frame.cells)
            if chosen is None:
                new = self.moved(y, self.answer(y, frame, keys, values), weight, t)
            elif chosen.index.shape[1]:
                part, narrow = chosen.gather(y), chosen.frame(frame, keys.shape[2], y.shape[1])
                answers = self.answer(part, narrow, keys, values)
                new = chosen.scatter(
                    new, self.moved(part, answers, None if weight is None else chosen.gather(weight), t)
                )
        held.stale = held.stale | decision.selected if self.config.holds else torch.ones_like(held.stale)
        return new, decision

    def decide(self, y: Tensor, t: int, plan: Plan) -> tuple[Decision, Tensor | None]:
        """Which tokens take pass t, and w(t), (B, T, 1); None stands for a weight of 1."""
        eligible = plan.eligible(t)
        if self.router is None:
            everything = torch.ones(y.shape[:2], dtype=torch.bool, device=y.device)
            return Decision(everything if eligible is None else everything & eligible, None), None
        row, capacity = min(t, len(self.router)) - 1, plan.capacity[t - 1]
        logits = self.logits(y, row)
        if capacity == 0:
            decision = Decision(torch.zeros_like(logits, dtype=torch.bool), None)
        else:
            selected = plan.select(logits.detach(), eligible, capacity, self.thresholds[row])
            read = self.logits(y.detach(), row) if self.config.detached_auxiliary else logits
            decision = Decision(selected, auxiliary(read, selected, eligible) if plan.learns else None)
        gate = torch.sigmoid if self.config.gate == "sigmoid" else torch.tanh
        return decision, gate(logits)[..., None]

    def logits(self, y: Tensor, row: int) -> Tensor:
        """r . y / rms(y), (B, T); elementwise: a token's logit depends on nothing beside it, not even in bits."""
        assert self.router is not None  # who asks has one
        return (F.rms_norm(y, (y.shape[-1],), None, self.config.norm_eps) * self.router[row]).sum(dim=-1)

    def answer(self, y: Tensor, frame: Frame, keys: Tensor, values: Tensor) -> Tensor:
        """f of tokens y (B, k, D) that attend to keys and values (B, K, S, W)."""
        queries = self.attention.queries(self.attention_norm(y), frame)
        return self.finish(y, self.attention.attend(queries, keys, values, frame.mask))

    def moved(self, y: Tensor, answer: Tensor, weight: Tensor | None, t: int) -> Tensor:
        """Y(t) of tokens that take the pass: Y + phi * w f(Y), or as the options say."""
        if self.config.updates:
            answer = answer - y
        result = self.phi(t) * (answer if weight is None else weight * answer)
        return (y + result if self.config.residual_thinking else result).to(y.dtype)

    def skipped(self, y: Tensor, weight: Tensor | None, t: int, eligible: Tensor | None) -> Tensor:
        """Y(t) of tokens that do not; rows that are through with their passes hold."""
        if self.config.holds or weight is None:
            return y
        new = self.moved(y, y, weight if self.config.weighting == "symmetric" else None, t)
        return new if eligible is None else torch.where(eligible[..., None], new, y)

    def phi(self, t: int) -> Tensor | float:
        """phi(t), (D,), or the number it would start at."""
        if self.step_encoding is None:
            return 1.0 if t == 0 else self.config.first_scale
        return self.step_encoding[min(t, len(self.step_encoding) - 1)]
