"""RoutedLayer: a transformer layer that thinks again about some of its tokens, pass by pass.

    Y(0) = phi(0) * f(X);   Y(t) = rule(Y(t-1), f(Y(t-1)), phi(t) w(t)) for the tokens in S(t)

`inner_thinking.py` has the equations in full, their options and why they differ from the paper's; `rules.py` says what
a pass makes of a token that takes it and of one that does not. Here they run: which tokens go (`decide`), and with
which keys (`Held`, which lives as long as `think`). One position of one row has a shorter way to the same
(`think_alone`).

Shapes: B batch, T positions of this call, N tokens that take a pass, S positions attended to, D model width,
K key/value heads, W head width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mull.models.cache import Cache, Slot
from mull.models.inner_thinking_config import InnerThinkingConfig
from mull.models.layers import Layer
from mull.models.loop import Iterations, iterate, last_state
from mull.models.positions import Context
from mull.models.roles import Role
from mull.models.rules import RULES
from mull.models.selection import GRID, Select, auxiliary, before, behind, expected_thresholds, threshold

MULTIPLE = 8  # tokens that are selected by threshold are gathered in multiples of this; see `Context.pick`


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
    """

    iterations: Iterations
    total: int
    capacity: tuple[float, ...]
    select: Select
    causal: bool
    learns: bool
    valid: Tensor | None

    def eligible(self, t: int, length: int) -> Tensor | None:
        """(B, T) bool, the tokens that may take pass t of rows of T = length positions; None for all.

        Never (B, 1): who counts these tokens would count rows.
        """
        if not isinstance(self.iterations, Tensor):
            return self.valid
        goes_on = (t < self.iterations)[:, None].expand(-1, length)
        return goes_on if self.valid is None else goes_on & self.valid


@dataclass
class Held:
    """The keys and values that a layer has of its tokens, (B, T, K, W) each, and which tokens changed since."""

    pair: tuple[Tensor, Tensor] | None = None  # None: everything is to be projected
    changed: tuple[Context, Tensor] | None = None  # the tokens of the last pass, and their states (1, N, D)

    def refreshed(self, layer: Layer, y: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Keys and values of states y (B, T, D): projected for tokens that changed, reused for the others."""
        if self.pair is None:
            self.pair = layer.attention.keys_values(layer.attention_norm(y), context.rotation)
        elif self.changed is not None:
            some, states = self.changed
            new = layer.attention.keys_values(layer.attention_norm(states), some.rotation)
            in_place = not torch.is_grad_enabled()  # nobody else has the pair
            self.pair = (some.scatter(self.pair[0], new[0], in_place), some.scatter(self.pair[1], new[1], in_place))
        self.changed = None
        return self.pair


@dataclass(frozen=True)
class Decision:
    """What was decided at one pass; stacked, at all passes of a layer; and stacked again, in all thinking layers.

    Attributes:
        selected: (B, T) bool, the tokens that take it; (B, T, R - 1) of a layer, and (B, T, n, R - 1) of n layers.
        logits: of the router, in the same shape, minus infinity where it was not asked; None without one.
        auxiliary_loss: scalar, a mean; None where none is wanted.
    """

    selected: Tensor
    logits: Tensor | None = None
    auxiliary_loss: Tensor | None = None

    @staticmethod
    def stacked(parts: Sequence[Decision], dim: int) -> Decision:
        logits = [part.logits for part in parts if part.logits is not None]
        losses = [part.auxiliary_loss for part in parts if part.auxiliary_loss is not None]
        return Decision(
            torch.stack([part.selected for part in parts], dim),
            torch.stack(logits, dim) if logits else None,
            torch.stack(losses).mean() if losses else None,
        )


class RoutedLayer(Layer):
    """See the head of this file. `forward` is one pass over all tokens, f."""

    thresholds: Tensor
    roles: ClassVar[dict[str, Role]] = {"step_encoding": "vector", "router": "table"}

    def __init__(self, config: InnerThinkingConfig) -> None:
        super().__init__(config)
        self.config, self.rule = config, RULES[config.rule]
        self.gate = torch.sigmoid if config.gate == "sigmoid" else torch.tanh
        passes = config.mean_iterations
        start = self.rule.start(config.routing, passes) if config.step_start is None else config.step_start
        self.later_scale = start  # where phi(t) starts for t > 0
        self.step_encoding: nn.Parameter | None = None  # phi, (passes, D)
        self.router: nn.Parameter | None = None  # r, (routed passes, D)
        if config.step_encoding:
            scales = torch.full((passes, config.d_model), start)
            scales[0] = 1
            self.step_encoding = nn.Parameter(scales)
        if config.routing:
            n_routed = max(1, passes - 1)
            self.router = nn.Parameter(torch.empty(n_routed, config.d_model))
            # h, (routed passes, G earlier, G)
            fresh = expected_thresholds(config.router_temperature)
            self.register_buffer("thresholds", fresh.expand(n_routed, len(GRID), -1).contiguous())

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        """As torch has it; thresholds that an earlier version saved, (routed passes, G), hold behind any capacity."""
        name = f"{prefix}thresholds"
        if name in state_dict and state_dict[name].dim() == 2:
            state_dict[name] = state_dict[name][:, None].repeat(1, len(GRID), 1)
        super()._load_from_state_dict(state_dict, prefix, *others)

    def think(self, x: Tensor, context: Context, index: int, plan: Plan) -> tuple[Tensor, Decision]:
        """All passes of the layer of this index over x (B, T, D): the last state, and what was decided."""
        if self.decides_alone(x, context, plan):
            return self.think_alone(x, context, index, plan)
        if isinstance(context.cache, Cache) and context.cache.policy == "full":
            context.cache.grow(index, plan.total - 1, context.end)  # room for all passes: bit by bit it would be copied
        held, decisions = Held(), list[Decision]()

        def one_pass(y: Tensor, t: int) -> Tensor:
            if t == 0:
                return self.first_pass(y, context, index)
            y, decision = self.routed_pass(y, context, (index, t), plan, held)
            decisions.append(decision)
            return y

        state = last_state(iterate(one_pass, x, plan.total))
        no_pass = Decision(torch.zeros(*x.shape[:2], 0, dtype=torch.bool, device=x.device))
        return state, Decision.stacked(decisions, dim=-1) if decisions else no_pass

    def decides_alone(self, x: Tensor, context: Context, plan: Plan) -> bool:
        """Whether this is one position of one row behind a cache, where passes can be decided one by one."""
        cache = context.cache
        alone = isinstance(cache, Cache) and cache.policy != "shared" and context.stands is None
        alike = isinstance(plan.iterations, int)  # a count of its own may end before the last pass
        asked = plan.total > 1 and plan.causal and self.router is not None and self.rule.holds
        return alone and x.shape[:2] == (1, 1) and alike and asked

    def think_alone(self, x: Tensor, context: Context, index: int, plan: Plan) -> tuple[Tensor, Decision]:
        """`think` for one position of one row, x (1, 1, D), so that a pass that is not taken costs next to nothing.

        A state that does not change meets several passes. Its router logits for all of them are computed together and
        compared in Python, and its keys are written to the cache for all of them together.
        """
        assert isinstance(context.cache, Cache)
        cache, end, total = context.cache, context.end, plan.total
        behind_all = [before(plan.capacity, t) for t in range(1, total)]
        pairs = {(e, c) for e, c in zip(behind_all, plan.capacity, strict=True) if 0 < c < 1}
        wanted = {(e, c): threshold(behind(self.thresholds, e), c).tolist() for e, c in pairs}
        taken, asked = [False] * (total - 1), [-math.inf] * (total - 1)
        known, logits, values_of = x, x, list[float]()  # the state that was asked about last, and its logits

        def one_pass(y: Tensor, t: int) -> Tensor:
            nonlocal known, logits, values_of
            if t == 0:
                return self.first_pass(y, context, index)
            capacity = plan.capacity[t - 1]
            if capacity == 0:
                return y
            if known is not y:
                known, logits = y, self.logits(y, slice(None))
                values_of = logits.flatten().tolist()
                cache.fill(index, t, total, *self.attention.keys_values(self.attention_norm(y), context.rotation))
            row = min(t, len(values_of)) - 1
            asked[t - 1] = values_of[row]
            taken[t - 1] = capacity == 1 or asked[t - 1] >= wanted[behind_all[t - 1], capacity][row]
            if not taken[t - 1]:
                return y
            answer = self.answer(y, context, (index, t), *cache.read((index, t), end))
            return self.taken(y, answer, self.gate(logits[..., row : row + 1]), t)

        state = last_state(iterate(one_pass, x, total))
        return state, Decision(
            torch.tensor([[taken]], device=x.device), torch.tensor([[asked]], device=x.device, dtype=x.dtype)
        )

    def first_pass(self, x: Tensor, context: Context, index: int) -> Tensor:
        """Y(0) = phi(0) f(X), (B, T, D)."""
        return (self.phi(0) * self(x, context, (index, 0))).to(x.dtype)

    def routed_pass(self, y: Tensor, context: Context, slot: Slot, plan: Plan, held: Held) -> tuple[Tensor, Decision]:
        """Y(t-1) -> Y(t), both (B, T, D); `slot` is (layer, t)."""
        t = slot[1]
        if plan.capacity[t - 1] == 0 and self.rule.holds:  # no state changes, and nobody asks for keys
            nobody = torch.zeros(y.shape[:2], dtype=torch.bool, device=y.device)
            return y, Decision(nobody, None if self.router is None else torch.full_like(y[..., 0], -math.inf))
        decision, weight = self.decide(y, t, plan)
        eligible = plan.eligible(t, y.shape[1])
        everybody = plan.capacity[t - 1] == 1 and eligible is None  # whatever the tokens are
        some = None if everybody else context.pick(decision.selected, MULTIPLE if plan.causal else 1)
        new = y
        if not self.rule.holds and weight is not None:
            new = self.rule.skipped(y, weight, self.phi(t)).to(y.dtype)
            if eligible is not None:  # rows that have had all their passes hold
                new = torch.where(eligible[..., None], new, y)
        if context.cache is not None or some is None or some.taken:
            keys, values = context.keep(slot, *held.refreshed(self, y, context))
            if some is None:
                new = self.taken(y, self.answer(y, context, slot, keys, values), weight, t)
            elif some.taken:
                part = some.gather(y)
                changed = self.taken(part, self.answer(part, some, slot, keys, values), some.gather(weight), t)
                new = some.scatter(new, changed, in_place=not torch.is_grad_enabled())
                held.changed = some, changed
        if some is None or not self.rule.holds:
            held.pair = held.changed = None  # every token has a new state
        return new, decision

    def decide(self, y: Tensor, t: int, plan: Plan) -> tuple[Decision, Tensor | None]:
        """Which tokens take pass t, and w(t), (B, T, 1); None stands for a weight of 1."""
        eligible = plan.eligible(t, y.shape[1])
        if self.router is None:
            everything = torch.ones(y.shape[:2], dtype=torch.bool, device=y.device)
            return Decision(everything if eligible is None else everything & eligible), None
        row, capacity = min(t, len(self.router)) - 1, plan.capacity[t - 1]
        logits = self.logits(y, row)
        if capacity == 0:
            decision = Decision(torch.zeros_like(logits, dtype=torch.bool), logits.detach())
        else:
            # only a threshold is asked for one
            known = behind(self.thresholds[row], before(plan.capacity, t)) if plan.causal else self.thresholds[row, 0]
            selected = plan.select(logits.detach(), eligible, capacity, known)
            read = self.logits(y.detach(), row) if self.config.detached_auxiliary else logits
            decision = Decision(selected, logits.detach(), auxiliary(read, selected, eligible) if plan.learns else None)
        return decision, self.gate(logits[..., None])

    def logits(self, y: Tensor, row: int | slice) -> Tensor:
        """r . y / rms(y) / temperature, (B, T), or (1, rows) of one token for several rows of r; elementwise: a token's
        logit depends on nothing beside it, not even in bits."""
        assert self.router is not None  # who asks has one
        along = F.rms_norm(y, (y.shape[-1],), None, self.config.norm_eps) * self.router[row]
        logits = along.sum(dim=-1)
        return logits if self.config.router_temperature == 1 else logits / self.config.router_temperature

    def answer(self, y: Tensor, context: Context, slot: Slot, keys: Tensor, values: Tensor) -> Tensor:
        """f of tokens y, (B, T, D) or gathered (1, N, D), that attend to keys and values (B, K, S, W)."""
        queries = self.attention.queries(self.attention_norm(y), context.rotation)
        return self.after_attention(y, self.attention.attend(queries, keys, values, context), context, slot)

    def taken(self, y: Tensor, answer: Tensor, weight: Tensor | None, t: int) -> Tensor:
        """Y(t) of tokens that take the pass."""
        return self.rule.taken(y, answer, weight, self.phi(t)).to(y.dtype)

    def phi(self, t: int) -> Tensor | float:
        """phi(t), (D,), or the number it would start at."""
        if self.step_encoding is None:
            return 1.0 if t == 0 else self.later_scale
        return self.step_encoding[min(t, len(self.step_encoding) - 1)]
