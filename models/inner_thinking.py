"""InnerThinkingTransformer: some layers think again about hard tokens (Chen et al., arXiv 2502.13842, ACL 2025).

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
from dataclasses import replace
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn

from mull.models.cache import Cache
from mull.models.config import Capacity, ModelConfig
from mull.models.inner_thinking_config import InnerThinkingConfig
from mull.models.language_model import LanguageModel, check_read_at, family, initialize
from mull.models.layers import Layer
from mull.models.loop import Iterations, check_counts, deepest
from mull.models.output import ModelOutput, Reading
from mull.models.positions import Context
from mull.models.routed_layer import Decision, Plan, RoutedLayer
from mull.models.selection import GRID, SELECTIONS, Selection, check_capacity


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
        """Think for `iterations` passes and answer. The other arguments are those of every family (language_model.py).

        Args:
            iterations: R >= 1 passes of every thinking layer, or (B,) int64, one count per row; None is the config's.
            capacity: share of tokens that routed passes take, one for all or one each; None is the config's. Refused
                where nothing is routed.
            selection: top_k over the sequence, or threshold; None means top_k in training and threshold in eval and
                with a cache. top_k is not causal.
            read_at: counts at which to answer too; each but R is a run of its own, since every layer thinks for itself.

        Returns:
            logits (B, T, V); state (B, T, D), the last layer's output; iterations (B, T), the most passes that any
            layer spent on a position; `selected`, `router_logits`, `auxiliary_loss` and `readings` of `ModelOutput`.

        Raises:
            ValueError: a count below 1, a capacity outside 0 .. 1 or of another length, a cache filled otherwise.
        """
        depth = self.check_depth(iterations, len(input_ids))
        read_at = check_read_at(read_at, depth, cache, "each count is a run of its own, with keys of its own")
        valid = None if attention_mask is None else attention_mask.bool()
        plan = self.plan(depth, capacity, selection, valid, cache)
        with torch.set_grad_enabled(torch.is_grad_enabled() and cache is None):
            context = self.context(input_ids, attention_mask, cache, depth)
            if cache is not None:
                cache.reserve_capacity(plan.capacity)
            x, made = self.run_layers(self.embed(input_ids), context, plan)
            shallower = [count for count in dict.fromkeys(read_at) if count != depth]
            readings = dict(self.sweep(input_ids, shallower, capacity, selection, attention_mask))
            logits, value = self.logits(x), self.value(x)
            if cache is not None:
                context.commit(None)
        output = ModelOutput(
            logits=logits,
            value=value,
            state=x,
            iterations=1 + made.selected.sum(dim=-1).amax(dim=-1),
            selected=made.selected,
            router_logits=made.logits,
            auxiliary_loss=made.auxiliary_loss,
        )
        readings |= {count: output for count in read_at if count == depth}  # this run's own answer
        return replace(output, readings={count: readings[count] for count in read_at}) if readings else output

    def run_layers(
        self, x: Tensor, context: Context, plan: Plan, indices: Sequence[int] | None = None
    ) -> tuple[Tensor, Decision]:
        """All layers over x (B, T, D), or those of some indices, and the decisions of the thinking ones."""
        decisions = []
        for index in range(len(self.layers)) if indices is None else indices:
            layer = self.layers[index]
            if isinstance(layer, RoutedLayer):
                x, made = layer.think(x, context, index, plan)
                decisions.append(made)
            else:
                x = layer(x, context, (index, 0))
        return x, Decision.stacked(decisions, dim=-2)

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
        routing, share = self.config.routing, self.config.capacity if capacity is None else capacity
        if capacity is not None and not routing:
            raise ValueError(f"this model routes nothing: capacity={capacity} is refused, leave it out")
        chosen = selection or ("top_k" if self.training and cache is None else "threshold")
        total = deepest(iterations) if cache is None else cache.iterations_of(iterations)
        return Plan(
            iterations=iterations,
            total=total,
            capacity=check_capacity(share if routing else 1.0, total - 1),
            select=SELECTIONS[chosen],
            causal=chosen == "threshold",
            learns=self.training and chosen == "top_k",
            valid=valid,
        )

    def executed_flops_per_token(self, output: ModelOutput, length: int | None = None) -> float:
        assert output.selected is not None  # (B, T, layers, passes)
        shares, new = output.selected.double().mean(dim=(0, 1)).tolist(), output.selected.shape[1]
        one_by_one = length is not None and new == 1
        return self.config.flops_at_shares(shares, new if length is None else length, one_by_one)

    def executed_flops(
        self, output: ModelOutput, lengths: Sequence[int], new: Sequence[int] | None = None
    ) -> list[float]:
        assert output.selected is not None  # (B, T, layers, passes)
        selected, width, found = output.selected.double().cpu(), output.selected.shape[1], []
        for row, length in enumerate(lengths):
            own = width if new is None else new[row]
            shares = selected[row, -own:].mean(dim=0).tolist()
            found.append(own * self.config.flops_at_shares(shares, length, width == 1))
        return found

    def compile_decoding(self) -> None:
        raise ValueError("an InnerThinkingTransformer decides pass by pass what to run: it cannot be compiled ahead")

    def compile_training(self) -> None:
        self.compile_decoding()  # refuses

    def sweep(
        self,
        input_ids: Tensor,
        counts: Sequence[int | None],
        capacity: Capacity | None = None,
        selection: Selection | None = None,
        attention_mask: Tensor | None = None,
    ) -> Iterator[tuple[int | None, Reading]]:
        for depth in check_counts("iterations", counts):
            shares = capacity[: depth - 1] if isinstance(capacity, Sequence) else capacity  # of its first passes
            yield depth, self(input_ids, depth, capacity=shares, selection=selection, attention_mask=attention_mask)

    @torch.no_grad()
    def calibrate(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> None:
        """Set the thresholds of all routers, so that a share c of these tokens takes a pass of capacity c, whatever the
        capacities of the passes before it.

        Each capacity e of the grid is run once, for all passes; the logits that a pass has then are those behind e, and
        their quantiles are its thresholds for every c. Passes before of different capacities count by their mean.

        The more tokens of held-out text, the closer other text meets a capacity: its error is about 1 / sqrt(B T).
        """
        if not self.config.routing:
            return
        iterations = max(2, self.config.mean_iterations)
        valid = None if attention_mask is None else attention_mask.bool()
        context = self.context(input_ids, attention_mask)
        found: list[Tensor] = []  # thresholds (G,), earlier capacity by capacity, layer by layer and pass by pass
        shares_above = torch.tensor([1 - share for share in GRID], dtype=torch.float64, device=input_ids.device)

        def select(logits: Tensor, eligible: Tensor | None, capacity: float, _: Tensor) -> Tensor:
            counted = (logits if eligible is None else logits[eligible]).flatten().to(torch.float64)
            # a little below the quantile: the logit that it is shall not be told from it by rounding
            found.append(torch.quantile(counted, shares_above) - 1e-5 * counted.std())
            selected = logits >= found[-1][GRID.index(capacity)].to(logits.dtype)
            return selected if eligible is None else selected & eligible

        first, last = self.config.thinking[0], self.config.thinking[-1]
        x = self.embed(input_ids)
        for index in range(first):  # no pass is taken there, so it is all the same
            x = self.layers[index](x, context, (index, 0))
        for share in GRID:
            shares = (share,) * (iterations - 1)
            plan = Plan(iterations, iterations, shares, select, causal=False, learns=False, valid=valid)
            self.run_layers(x, context, plan, range(first, last + 1))
        table = rearrange(torch.stack(found), "(e n t) g -> n t e g", e=len(GRID), t=iterations - 1)
        thinking = [layer for layer in self.layers if isinstance(layer, RoutedLayer)]
        for layer, thresholds in zip(thinking, table, strict=True):
            layer.thresholds.copy_(thresholds)
