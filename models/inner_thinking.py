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
attention, MLP) for S(t) alone: gather, compute, scatter (`routed_layer.py`). Which tokens S(t) are is told by top-k
over the sequence in training and by a calibrated threshold, token by token, in eval (`selection.py`).

The sum is the rule `paper`. What else a pass may make of a state is told in `rules.py`: `update` adds up what the
passes change rather than what they say, `loop` lets each result replace the one before. Further closed choices:

    gate: tanh                in place of the sigmoid
    step_encoding: false      phi stays at its start
    routing: false            all tokens, w = 1: with rule paper the paper's equation 4, with rule loop its Loop

Deliberate deviations:

- phi(0) acts on the state itself, not on its copy in the final sum: the state after t passes is then Y(t) whatever
  follows, which is what lets depth and capacity differ from training.
- phi starts at 1 for t = 0, and for t > 0 where the rule says (`Rule.start`). alpha(t) is part of phi(t).
- The router reads the state at rms 1, so that its logits do not grow with the stream; the temperature is ours.
- Selection in eval is causal; the paper is silent about decoding. The logit learns what top-k decides through an
  auxiliary loss (`auxiliary_loss` of the output), which can be kept from the stream (`detached_auxiliary`).
- Passes beyond the trained count use the last pass's router, phi and thresholds.
"""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mull.models.cache import Cache
from mull.models.config import Capacity, ModelConfig
from mull.models.inner_thinking_config import InnerThinkingConfig
from mull.models.language_model import LanguageModel, check_read_at, family, initialize
from mull.models.layers import Layer
from mull.models.loop import Iterations, check_count, check_iterations, deepest
from mull.models.output import ModelOutput, Reading
from mull.models.positions import Context
from mull.models.routed_layer import Decision, Plan, RoutedLayer
from mull.models.selection import GRID, SELECTIONS, Selection, check_capacity

BLOCK = 8  # tokens are gathered in multiples of this in eval; see `Context.pick`


@family
class InnerThinkingTransformer(LanguageModel):
    """A transformer some of whose layers think again about some tokens. See the head of this file."""

    config_class: ClassVar[type[ModelConfig]] = InnerThinkingConfig
    config: InnerThinkingConfig

    def __init__(self, config: InnerThinkingConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(
            RoutedLayer(config) if index in config.thinking else Layer(config) for index in range(config.n_layers)
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
            context = self.context(input_ids, attention_mask, cache, depth)
            if cache is not None:
                cache.reserve_capacity(plan.capacity)
            x, decisions = self.run_layers(self.embed(input_ids), context, plan)
            readings: dict[int, Reading] = {
                count: self(
                    input_ids, count, capacity=self.shares(capacity, count), selection=selection,
                    attention_mask=attention_mask,
                )
                for count in read_at
            }  # fmt: skip
            logits = self.logits(x)
            if cache is not None:
                context.commit(None)
        return ModelOutput(logits=logits, state=x, readings=readings, **self.summary(decisions, input_ids))

    def run_layers(self, x: Tensor, context: Context, plan: Plan) -> tuple[Tensor, list[Decision]]:
        """All layers over x (B, T, D); the decisions of each thinking layer, none where no pass is routed."""
        decisions = []
        for index, layer in enumerate(self.layers):
            if isinstance(layer, RoutedLayer):
                x, made = layer.think(x, context, index, plan)
                decisions += [] if made is None else [made]
            else:
                x = layer(x, context, (index, 0))
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
        total = deepest(iterations) if cache is None else cache.iterations_of(iterations)
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

    def executed_flops_per_token(self, output: ModelOutput) -> float:
        assert output.selected is not None  # (B, T, layers, passes)
        shares = output.selected.double().mean(dim=(0, 1))
        return self.config.flops_at_shares(shares.tolist(), output.selected.shape[1])

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
        context = self.context(input_ids, attention_mask)
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
            self.run_layers(self.embed(input_ids), context, plan)
            columns.append(torch.stack(found))
        table = torch.stack(columns, dim=-1).view(len(self.config.thinking), iterations - 1, len(GRID))
        for index, thresholds in zip(self.config.thinking, table, strict=True):
            layer = self.layers[index]
            assert isinstance(layer, RoutedLayer)
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
