"""ThinkingLayer: a transformer layer that thinks again about some of its tokens, pass by pass.

    Y(0) = phi(0) * f(X);   Y(t) = Y(t-1) + phi(t) * w(t) f(Y(t-1)) for the tokens in S(t), otherwise Y(t-1)

`inner_thinking.py` has the equations in full, their options and why they differ from the paper's. Here they run: which
tokens go (`decide`), with which keys (`Held`), what a pass makes of those that go (`moved`) and of the others
(`skipped`). No state survives a call: the passes share a `Held` that lives as long as `think`. One position of one row
takes a shorter way to the same (`think_alone`).

Shapes: B batch, T positions of this call, N tokens that take a pass, S positions attended to, D model width,
K key/value heads, W head width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mull.models.cache import Slot
from mull.models.layers import Frame, Layer
from mull.models.loop import Iterations, iterate, last_state
from mull.models.routing import Chosen, Select, auxiliary, choose, expected_thresholds, threshold

if TYPE_CHECKING:
    from mull.models.inner_thinking import InnerThinkingConfig


@dataclass(frozen=True)
class Plan:
    """How the thinking layers of one call think.

    Attributes:
        iterations: R, or (B,) with a count per row; a row takes its first passes and holds from then on.
        total: R, of the deepest row.
        capacity: share of the tokens for each of the R - 1 routed passes.
        select: how tokens are selected.
        causal: each token is selected by itself, by threshold.
        learns: whether the auxiliary loss is wanted.
        valid: (B, T) bool, false at padding; None without padding.
        block: tokens are gathered in multiples of this; see `choose`.
    """

    iterations: Iterations
    total: int
    capacity: tuple[float, ...]
    select: Select
    causal: bool
    learns: bool
    valid: Tensor | None
    block: int = 1

    def eligible(self, t: int) -> Tensor | None:
        """(B, T) or (B, 1) bool, the tokens that may take pass t; None for all."""
        if not isinstance(self.iterations, Tensor):
            return self.valid
        goes_on = (t < self.iterations)[:, None]
        return goes_on if self.valid is None else goes_on & self.valid

    def takes_all(self, t: int) -> bool:
        """Whether every token takes pass t, whatever the tokens are."""
        return self.capacity[t - 1] == 1 and self.eligible(t) is None


class Held:
    """The keys and values that a layer has of its tokens, (B, T, K, W) each, and what moved on since."""

    def __init__(self) -> None:
        self.pair: tuple[Tensor, Tensor] | None = None  # None: everything is to be projected
        self.moved: tuple[Chosen, Tensor, Frame] | None = None  # tokens of the last pass, states (1, N, D), frame

    def forget(self) -> None:
        """All tokens moved."""
        self.pair = self.moved = None

    def refreshed(self, layer: Layer, y: Tensor, frame: Frame) -> tuple[Tensor, Tensor]:
        """Keys and values of states y: projected where they moved, reused elsewhere."""
        if self.pair is None:
            self.pair = layer.attention.keys_values(layer.attention_norm(y), frame.rotation)
        elif self.moved is not None:
            chosen, states, narrow = self.moved
            new = layer.attention.keys_values(layer.attention_norm(states), narrow.rotation)
            scatter = chosen.scatter if torch.is_grad_enabled() else chosen.scatter_  # nobody else has the pair
            self.pair = (scatter(self.pair[0], new[0]), scatter(self.pair[1], new[1]))
        self.moved = None
        return self.pair


@dataclass(frozen=True)
class Decision:
    """What a router decided at one pass, or, stacked, at all passes of a layer.

    Attributes:
        selected: (B, T) bool, the tokens that take it; (B, T, R - 1) when stacked.
        logits: (B, T), of the router, minus infinity where it was not asked; None without one. Stacked alike.
        auxiliary_loss: scalar; None where none is wanted.
    """

    selected: Tensor
    logits: Tensor | None = None
    auxiliary_loss: Tensor | None = None

    @staticmethod
    def stacked(passes: Sequence[Decision]) -> Decision:
        logits = [decision.logits for decision in passes if decision.logits is not None]
        losses = [decision.auxiliary_loss for decision in passes if decision.auxiliary_loss is not None]
        return Decision(
            torch.stack([decision.selected for decision in passes], dim=-1),
            torch.stack(logits, dim=-1) if logits else None,
            torch.stack(losses).mean() if losses else None,
        )


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

    def think(self, x: Tensor, frame: Frame, index: int, plan: Plan) -> tuple[Tensor, Decision | None]:
        """All passes over x (B, T, D): the last state, and what was decided; None where no pass is routed."""
        total = plan.total
        if self.decides_alone(x, frame, plan):
            return self.think_alone(x, frame, index, plan)
        if frame.cache is not None:
            end = frame.cache.length + x.shape[1] if frame.cells is None else frame.cells.end
            frame.cache.reserve(index, total, end)
        held, decisions = Held(), list[Decision]()

        def one_pass(y: Tensor, t: int) -> Tensor:
            if t == 0:
                return self.first_pass(y, frame, index)
            y, decision = self.routed_pass(y, frame, (index, t), plan, held)
            decisions.append(decision)
            return y

        state = last_state(iterate(one_pass, x, total))
        return state, Decision.stacked(decisions) if decisions else None

    def decides_alone(self, x: Tensor, frame: Frame, plan: Plan) -> bool:
        """Whether this is one position of one row behind a cache, where passes can be decided one by one."""
        cache = frame.cache
        if cache is None or cache.policy == "shared" or frame.cells is not None or x.shape[:2] != (1, 1):
            return False
        alike = isinstance(plan.iterations, int)  # a count of its own may end before the last pass
        return alike and plan.causal and self.router is not None and self.config.holds

    def think_alone(self, x: Tensor, frame: Frame, index: int, plan: Plan) -> tuple[Tensor, Decision | None]:
        """`think` for one position of one row, x (1, 1, D), so that a pass that is not taken costs next to nothing:
        decided in Python, all logits of a state at once, and its keys written at once to all passes that meet it."""
        assert frame.cache is not None
        cache, end, total = frame.cache, frame.cache.length + 1, plan.total
        wanted = {c: threshold(self.thresholds, c).tolist() for c in set(plan.capacity) if 0 < c < 1}
        taken, asked = [False] * (total - 1), [-math.inf] * (total - 1)
        known, logits, values_of = x, x, list[float]()  # the state that was asked about last, and its logits

        def one_pass(y: Tensor, t: int) -> Tensor:
            nonlocal known, logits, values_of
            if t == 0:
                return self.first_pass(y, frame, index)
            capacity = plan.capacity[t - 1]
            if capacity == 0:
                return y
            if known is not y:
                known, logits = y, self.logits(y, slice(None))
                values_of = logits.flatten().tolist()
                cache.fill(index, t, total, *self.attention.keys_values(self.attention_norm(y), frame.rotation))
            row = min(t, len(values_of)) - 1
            asked[t - 1] = values_of[row]
            taken[t - 1] = capacity == 1 or asked[t - 1] >= wanted[capacity][row]
            if not taken[t - 1]:
                return y
            answer = self.answer(y, frame, *cache.read((index, t), end))
            return self.moved(y, answer, self.gate(logits[..., row : row + 1]), t)

        state = last_state(iterate(one_pass, x, total))
        if total == 1:
            return state, None
        return state, Decision(
            torch.tensor([[taken]], device=x.device), torch.tensor([[asked]], device=x.device, dtype=x.dtype)
        )

    def first_pass(self, x: Tensor, frame: Frame, index: int) -> Tensor:
        """Y(0) = phi(0) f(X), (B, T, D)."""
        return (self.phi(0) * self(x, frame, (index, 0))).to(x.dtype)

    def routed_pass(self, y: Tensor, frame: Frame, slot: Slot, plan: Plan, held: Held) -> tuple[Tensor, Decision]:
        """Y(t-1) -> Y(t), both (B, T, D); `slot` is (layer, t)."""
        t = slot[1]
        if plan.capacity[t - 1] == 0 and self.config.holds:  # nothing moves, and nobody asks for keys
            nobody = torch.zeros(y.shape[:2], dtype=torch.bool, device=y.device)
            return y, Decision(nobody, None if self.router is None else torch.full_like(y[..., 0], -math.inf))
        decision, weight = self.decide(y, t, plan)
        chosen = None if plan.takes_all(t) else choose(decision.selected, plan.block)
        new = self.skipped(y, weight, t, plan.eligible(t))
        if frame.cache is not None or chosen is None or chosen.taken:
            keys, values = held.refreshed(self, y, frame)
            if frame.cache is None:
                keys, values = keys.transpose(1, 2), values.transpose(1, 2)
            else:
                keys, values = frame.cache.extend(slot, keys, values, frame.cells)
            if chosen is None:
                new = self.moved(y, self.answer(y, frame, keys, values), weight, t)
            elif chosen.taken:
                part, narrow = chosen.gather(y), chosen.frame(frame, keys)
                answers = self.answer(part, narrow, keys, values)
                moved = self.moved(part, answers, None if weight is None else chosen.gather(weight), t)
                new = (chosen.scatter if torch.is_grad_enabled() else chosen.scatter_)(new, moved)
                held.moved = chosen, moved, narrow
        if chosen is None or not self.config.holds:
            held.forget()
        return new, decision

    def decide(self, y: Tensor, t: int, plan: Plan) -> tuple[Decision, Tensor | None]:
        """Which tokens take pass t, and w(t), (B, T, 1); None stands for a weight of 1."""
        eligible = plan.eligible(t)
        if self.router is None:
            everything = torch.ones(y.shape[:2], dtype=torch.bool, device=y.device)
            return Decision(everything if eligible is None else everything & eligible), None
        row, capacity = min(t, len(self.router)) - 1, plan.capacity[t - 1]
        logits = self.logits(y, row)
        if capacity == 0:
            decision = Decision(torch.zeros_like(logits, dtype=torch.bool), logits.detach())
        else:
            selected = plan.select(logits.detach(), eligible, capacity, self.thresholds[row])
            read = self.logits(y.detach(), row) if self.config.detached_auxiliary else logits
            decision = Decision(selected, logits.detach(), auxiliary(read, selected, eligible) if plan.learns else None)
        return decision, self.gate(logits[..., None])

    def gate(self, logits: Tensor) -> Tensor:
        """w out of the router's logits."""
        return torch.sigmoid(logits) if self.config.gate == "sigmoid" else torch.tanh(logits)

    def logits(self, y: Tensor, row: int | slice) -> Tensor:
        """r . y / rms(y) / temperature, (B, T), or (1, rows) of one token for several rows of r; elementwise: a token's
        logit depends on nothing beside it, not even in bits."""
        assert self.router is not None  # who asks has one
        along = F.rms_norm(y, (y.shape[-1],), None, self.config.norm_eps) * self.router[row]
        logits = along.sum(dim=-1)
        return logits if self.config.router_temperature == 1 else logits / self.config.router_temperature

    def answer(self, y: Tensor, frame: Frame, keys: Tensor, values: Tensor) -> Tensor:
        """f of tokens y (B, T, D), or (1, N, D) in a narrowed frame, that attend to keys and values (B, K, S, W)."""
        queries = self.attention.queries(self.attention_norm(y), frame.rotation)
        return self.finish(y, self.attention.attend(queries, keys, values, frame))

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
