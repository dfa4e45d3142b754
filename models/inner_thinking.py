"""InnerThinkingTransformer: some layers think again about the tokens that need it (Inner Thinking Transformer,
Chen et al., arXiv 2502.13842, ACL 2025).

With f one whole transformer layer, R iterations and router rows r(t), a thinking layer turns X into Y(R - 1):

    Y(0)      = phi(0) * f(X)                                      all tokens
    w(t)      = gate( r(t) . Y(t-1) / rms(Y(t-1)) / temperature ),  t = 1 .. R - 1
    S(t)      = the share c(t) of the tokens with the largest w(t)
    Y(t)_i    = Y(t-1)_i + phi(t) * w(t)_i f(Y(t-1))_i             i in S(t)      (residual thinking connection)
              = Y(t-1)_i                                           otherwise      (skipped: hold)

f lets a token attend to the state Y(t-1) of *every* token up to itself, selected or not. A held token has the same
keys and values again, so a routed pass projects those of the tokens that changed, and everything else (queries,
attention, MLP) for S(t) alone: gather, compute, scatter (`thinking_layer.py`). Which tokens S(t) are is told by top-k
over the sequence in training and by a calibrated threshold, token by token, in eval (`routing.py`).

What the paper ablates or leaves open (closed choices):

    skipped: literal          Y(t)_i = Y(t-1)_i + phi(t) * Y(t-1)_i for skipped tokens, as its formula reads
    weighting: symmetric      Y(t)_i = Y(t-1)_i + phi(t) * w(t)_i Y(t-1)_i for skipped tokens, whatever `skipped` says
    gate: tanh                in place of the sigmoid
    residual_thinking: false  Y(t)_i = phi(t) * w(t)_i f(Y(t-1))_i; skipped tokens hold (symmetric: phi * w Y(t-1)_i)
    accumulated: update       Y(t)_i = Y(t-1)_i + phi(t) * w(t)_i (f(Y(t-1))_i - Y(t-1)_i): f holds its own residual, so
                              the paper's sum adds the state to itself; this adds only what a pass changes, which
                              for skipped tokens is nothing, whatever `skipped` and `weighting` say
    step_encoding: false      phi stays at its start
    routing: false            all tokens, w = 1: with the connection, the paper's equation 4; without it, Loop

Deliberate deviations:

- phi(0) acts on the state itself, not on its copy in the final sum: the state after t passes is then Y(t) whatever
  follows, which is what lets depth and capacity differ from training.
- phi starts at 1 for t = 0, and so small for t > 0 that a token that takes all passes grows by less than sqrt(e);
  where only updates are added up, or results replace each other, phi w starts near 1. alpha(t) is part of phi(t).
- The router reads the state at rms 1, so that its logits do not grow with the stream; the temperature is ours.
- Selection in eval is causal; the paper is silent about decoding. The logit learns what top-k decides through an
  auxiliary loss (`auxiliary_loss` of the output), which can be kept from the stream (`detached_auxiliary`).
- Passes beyond the trained count use the last pass's router, phi and thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from mull.models.cache import Cache
from mull.models.config import ModelConfig, Wiring
from mull.models.language_model import LanguageModel, check_read_at, initialize
from mull.models.layers import Frame, Layer
from mull.models.loop import Iterations, check_count, check_iterations
from mull.models.output import ModelOutput, Reading
from mull.models.routing import BLOCK, GRID, SELECTIONS, Capacity, Selection, check_capacity
from mull.models.thinking_layer import Decision, Plan, ThinkingLayer


@dataclass(frozen=True, kw_only=True)
class InnerThinkingConfig(ModelConfig):
    """Configuration of the inner-thinking family; see `ModelConfig` for the shared fields.

    Args:
        n_layers: number of layers, each with weights of its own.
        thinking_layers: which of them think, from 0; None means every other one, the second first.
        mean_iterations: passes in training (x4 is 4); the default of forward.
        capacity: share of the tokens that a routed pass takes in training; the default of forward.
        skipped: what a token does at a pass that it does not take: keep its state, or what the formula says.
        gate: of the router.
        weighting: whether the router weighs selected tokens only, or skipped ones too.
        residual_thinking: results of the passes add up; otherwise each replaces the one before.
        accumulated: what the connection adds up: whole results f(Y), or only what they change, f(Y) - Y.
        step_encoding: phi is learned.
        step_start: where phi(t) starts for t > 0; None means what the deviations say, 1 / N of it is a residual scaled
            by depth.
        router_temperature: divides the router's logit; above 1 the gate is flatter.
        routing: a router selects; otherwise all tokens take every pass with weight 1.
        detached_auxiliary: the auxiliary loss trains the routers only.
    """

    model_type: ClassVar[str] = "inner_thinking"

    wiring: Wiring = "pre_norm"
    n_layers: int = 4
    thinking_layers: tuple[int, ...] | None = None
    mean_iterations: int = 4
    capacity: float = 0.7
    skipped: Literal["hold", "literal"] = "hold"
    gate: Literal["sigmoid", "tanh"] = "sigmoid"
    weighting: Literal["selected", "symmetric"] = "selected"
    residual_thinking: bool = True
    accumulated: Literal["answer", "update"] = "answer"
    step_encoding: bool = True
    step_start: float | None = None
    router_temperature: float = 1.0
    routing: bool = True
    detached_auxiliary: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.thinking_layers, list):  # as JSON has it
            object.__setattr__(self, "thinking_layers", tuple(self.thinking_layers))
        if self.thinking_layers is None and isinstance(self.n_layers, int):
            object.__setattr__(self, "thinking_layers", tuple(range(1, self.n_layers, 2)) or (0,))
        super().__post_init__()

    @property
    def thinking(self) -> tuple[int, ...]:
        assert self.thinking_layers is not None  # resolved in __post_init__
        return self.thinking_layers

    @property
    def default_iterations(self) -> int:
        return self.mean_iterations

    @property
    def default_capacity(self) -> float | None:
        return self.capacity if self.routing else None

    @property
    def effective_depth(self) -> int:
        return self.n_layers + (self.mean_iterations - 1) * len(self.thinking)

    @property
    def holds(self) -> bool:
        """Whether the state of a skipped token stays as it is, and its keys and values with it."""
        if self.updates:
            return True
        return self.weighting == "selected" and (self.skipped == "hold" or not self.residual_thinking)

    @property
    def updates(self) -> bool:
        """Whether the passes add up what they change rather than what they say."""
        return self.residual_thinking and self.accumulated == "update"

    @property
    def first_scale(self) -> float:
        """Where phi(t) starts for t > 0; see the deviations."""
        if self.step_start is not None:
            return self.step_start
        typical = 0.5 if self.routing and (self.skipped == "hold" or self.updates) else 1.0  # phi's factor at first
        if not self.residual_thinking or self.updates:
            return 1 / typical
        return 0.5 / typical / max(1, self.mean_iterations - 1)

    def issues(self) -> list[str]:
        found = [
            f"{name} must be at least 1, not {getattr(self, name)}"
            for name in ("n_layers", "mean_iterations")
            if getattr(self, name) < 1
        ]
        if not 0 < self.capacity <= 1:
            found.append(f"capacity must lie above 0 and at most at 1, not {self.capacity}")
        if not 0 < self.router_temperature < math.inf:
            found.append(f"router_temperature must be positive, not {self.router_temperature}")
        ordered = sorted({layer for layer in self.thinking if 0 <= layer < self.n_layers})
        if list(self.thinking) != ordered or not ordered:
            found.append(
                f"thinking_layers must name layers from 0 to {self.n_layers - 1}, ascending and at least one, "
                f"not {list(self.thinking)}"
            )
        return super().issues() + found


class InnerThinkingTransformer(LanguageModel):
    """A transformer some of whose layers think again about some tokens. See the head of this file."""

    config: InnerThinkingConfig

    def __init__(self, config: InnerThinkingConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(
            ThinkingLayer(config) if index in config.thinking else Layer(config) for index in range(config.n_layers)
        )
        initialize(self)

    def forward(
        self,
        input_ids: Tensor,
        iterations: Iterations | None = None,
        *,
        capacity: Capacity | None = None,
        selection: Selection | None = None,
        attention_mask: Tensor | None = None,
        cache: Cache | None = None,
        read_at: Sequence[int] = (),
    ) -> ModelOutput:
        """Think for `iterations` passes and answer.

        Args:
            input_ids: (B, T) int64.
            iterations: R >= 1 passes of every thinking layer, or (B,) int64 with one count per row; None means the
                config's mean_iterations.
            capacity: share of the tokens that a routed pass takes, one for all or one for each of the R - 1; None means
                the config's. Refused without routing.
            selection: top_k over the sequence, or threshold; None means top_k in training and threshold in eval and
                with a cache. top_k is not causal.
            attention_mask: (B, T), 0 at padding (left or right).
            cache: keys and values of earlier tokens; a cached call keeps no gradients.
            read_at: counts at which to answer too; each is a run of its own, since every layer thinks for itself.

        Returns:
            logits (B, T, V); state (B, T, D), the last layer's output; `selected`; `router_logits`; iterations (B, T),
            the most passes that any layer spent on a position; `auxiliary_loss` where a training model with routers
            selects by top_k; `readings` by count.

        Raises:
            ValueError: a count below 1, a capacity outside 0 .. 1 or of another length, a cache filled otherwise.
        """
        depth = check_iterations(self.config.mean_iterations if iterations is None else iterations, len(input_ids))
        depth = depth.to(input_ids.device) if isinstance(depth, Tensor) else depth
        check_read_at(read_at, depth, cache, "each count is a run of its own, with keys of its own")
        valid = None if attention_mask is None else attention_mask.bool()
        plan = self.plan(depth, capacity, selection, valid, cache)
        with torch.set_grad_enabled(torch.is_grad_enabled() and cache is None):
            frame = self.frame(input_ids, attention_mask, cache, depth)
            if cache is not None:
                cache.reserve_capacity(plan.capacity)
            x, decisions = self.run(self.embed(input_ids), frame, plan)
            readings: dict[int, Reading] = {
                count: self(
                    input_ids, count, capacity=self.shares(capacity, count), selection=selection,
                    attention_mask=attention_mask,
                )
                for count in read_at
            }  # fmt: skip
            logits = self.logits(x)
            if cache is not None:
                frame.finish(None)
        return ModelOutput(logits=logits, state=x, readings=readings, **self.summary(decisions, input_ids))

    def run(self, x: Tensor, frame: Frame, plan: Plan) -> tuple[Tensor, list[Decision]]:
        """All layers over x (B, T, D); the decisions of each thinking layer, none where no pass is routed."""
        decisions = []
        for index, layer in enumerate(self.layers):
            if isinstance(layer, ThinkingLayer):
                x, made = layer.think(x, frame, index, plan)
                decisions += [] if made is None else [made]
            else:
                x = layer(x, frame, (index, 0))
        return x, decisions

    def plan(
        self,
        iterations: Iterations,
        capacity: Capacity | None,
        selection: Selection | None,
        valid: Tensor | None,
        cache: Cache | None,
    ) -> Plan:
        if selection is not None and selection not in SELECTIONS:
            raise ValueError(f"selection must be one of {', '.join(map(repr, SELECTIONS))}, not {selection!r}")
        if selection == "top_k" and cache is not None:
            raise ValueError("top_k looks at tokens that a cached call does not have yet; leave selection out")
        chosen = selection or ("top_k" if self.training and cache is None else "threshold")
        deepest = int(iterations.max()) if isinstance(iterations, Tensor) else iterations
        total = deepest if cache is None else cache.deepest(iterations)
        return Plan(
            iterations=iterations,
            total=total,
            capacity=check_capacity(self.share(capacity), total - 1),
            select=SELECTIONS[chosen],
            causal=chosen == "threshold",
            learns=self.training and chosen == "top_k",
            valid=valid,
            block=BLOCK if chosen == "threshold" else 1,
        )

    def share(self, capacity: Capacity | None) -> Capacity:
        """The capacity of a call that names this one."""
        if self.config.routing:
            return self.config.capacity if capacity is None else capacity
        if capacity is not None:
            raise ValueError(f"this model routes nothing: capacity={capacity} is refused, leave it out")
        return 1.0

    @staticmethod
    def shares(capacity: Capacity | None, count: int) -> Capacity | None:
        """What is left of a capacity for a smaller count: its first passes."""
        return capacity[: count - 1] if isinstance(capacity, Sequence) else capacity

    def compile_decoding(self) -> None:
        raise ValueError("an InnerThinkingTransformer decides pass by pass what to run: it cannot be compiled ahead")

    def sweep(
        self,
        input_ids: Tensor,
        counts: Sequence[int | None],
        *,
        capacity: Capacity | None = None,
        selection: Selection | None = None,
    ) -> Iterator[tuple[int | None, Reading]]:
        for count in counts:
            depth = check_count("iterations", count)  # type: ignore[arg-type]  # refuses None
            yield count, self(input_ids, depth, capacity=self.shares(capacity, depth), selection=selection)

    @torch.no_grad()
    def calibrate(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> None:
        """Set the thresholds of all routers, so that a share c of these tokens takes a pass of capacity c.

        Args:
            input_ids: (B, T) int64, held-out text: the more tokens, the closer other text meets a capacity (its error
                is about 1 / sqrt(B T), in shares of 1).
            attention_mask: (B, T), 0 at padding.
        """
        if not self.config.routing:
            return
        iterations = max(2, self.config.mean_iterations)
        valid = None if attention_mask is None else attention_mask.bool()
        frame = self.frame(input_ids, attention_mask, None, iterations)
        columns = []
        for share in GRID:
            found: list[Tensor] = []

            def select(logits: Tensor, eligible: Tensor | None, capacity: float, _: Tensor) -> Tensor:
                counted = (logits if eligible is None else logits[eligible]).flatten().to(torch.float64)
                # a little below the quantile: the logit that it is shall not be told from it by rounding
                found.append(torch.quantile(counted, 1 - capacity) - 1e-5 * counted.std())  # noqa: B023
                selected = logits >= found[-1].to(logits.dtype)  # noqa: B023
                return selected if eligible is None else selected & eligible

            shares = (share,) * (iterations - 1)
            plan = Plan(iterations, iterations, shares, select, causal=False, learns=False, valid=valid)
            self.run(self.embed(input_ids), frame, plan)
            columns.append(torch.stack(found))
        table = torch.stack(columns, dim=-1).view(len(self.config.thinking), iterations - 1, len(GRID))
        for index, thresholds in zip(self.config.thinking, table, strict=True):
            layer = self.layers[index]
            assert isinstance(layer, ThinkingLayer)
            layer.thresholds.copy_(thresholds)

    def summary(self, decisions: list[Decision], input_ids: Tensor) -> dict[str, Any]:
        """What the output says of routing; see `ModelOutput`."""
        losses = [decision.auxiliary_loss for decision in decisions if decision.auxiliary_loss is not None]
        logits = [decision.logits for decision in decisions if decision.logits is not None]
        selected = torch.zeros(
            *input_ids.shape, len(self.config.thinking), 0, dtype=torch.bool, device=input_ids.device
        )
        if decisions:
            selected = torch.stack([decision.selected for decision in decisions], dim=-2)
        return {
            "iterations": 1 + selected.sum(dim=-1).amax(dim=-1),
            "selected": selected,
            "router_logits": torch.stack(logits, dim=-2) if logits else None,
            "auxiliary_loss": torch.stack(losses).mean() if losses else None,
        }
