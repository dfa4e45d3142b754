"""Configuration of the inner-thinking family, and what its routed passes cost.

A pass that a share of the tokens takes costs queries, attention and MLP of that share, and keys and values of the
tokens that changed since the keys were projected last. The router's one product is not counted.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from mull.models.config import Capacity, ModelConfig, Wiring
from mull.models.cost import Cost, vector
from mull.models.registry import Registry
from mull.models.rules import RULES
from mull.models.selection import check_capacity


@dataclass(frozen=True, kw_only=True)
class InnerThinkingConfig(ModelConfig):
    """Configuration of the inner-thinking family; see `ModelConfig` for the shared fields.

    Args:
        causal: true; a router decides for each token by what stands before it.
        board: false, for the same reason.
        convolution: none; it joins neighbours, and a routed pass has only some of the tokens.
        n_layers: number of layers, each with weights of its own.
        thinking_layers: which of them think, from 0; None means every other one, the second first.
        mean_iterations: passes in training (x4 is 4); the default of forward.
        capacity: share of the tokens that a routed pass takes in training; the default of forward.
        rule: what a pass makes of a state: paper, update, loop, paper_literal, ... (rules.py).
        gate: of the router.
        step_encoding: phi is learned.
        step_start: where phi(t) starts for t > 0; None leaves that to the rule.
        router_temperature: divides the router's logit; above 1 the gate is flatter.
        routing: a router selects; otherwise all tokens take every pass with weight 1.
        detached_auxiliary: the auxiliary loss trains the routers only.
    """

    model_type: ClassVar[str] = "inner_thinking"
    choices: ClassVar[Mapping[str, Registry[Any]]] = {"rule": RULES}
    least: ClassVar[Mapping[str, int]] = {"n_layers": 1, "mean_iterations": 1}

    wiring: Wiring = "pre_norm"
    causal: Literal[True] = True
    board: Literal[False] = False
    convolution: Literal["none"] = "none"
    n_layers: int = 4
    thinking_layers: tuple[int, ...] | None = None
    mean_iterations: int = 4
    capacity: float = 0.7
    rule: str = "paper"
    gate: Literal["sigmoid", "tanh"] = "sigmoid"
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
    def default_capacity(self) -> float | None:
        return self.capacity if self.routing else None

    @property
    def effective_depth(self) -> int:
        return self.n_layers + (self.mean_iterations - 1) * len(self.thinking)

    @property
    def routed_layers(self) -> tuple[int, ...]:
        return self.thinking if self.routing else ()

    def once(self) -> Cost:
        phi = vector(self.mean_iterations * self.d_model if self.step_encoding else 0)
        router = vector(max(1, self.mean_iterations - 1) * self.d_model if self.routing else 0)
        return self.ends() + self.n_layers * self.layer() + len(self.thinking) * (phi + router)

    def flops_per_token(
        self, iterations: float | None, length: int, capacity: Capacity | None = None, one_by_one: bool = False
    ) -> float:
        count = int(iterations or self.mean_iterations)
        share = (self.capacity if capacity is None else capacity) if self.routing else 1.0
        return self.flops_at_shares([check_capacity(share, count - 1)] * len(self.thinking), length, one_by_one)

    def flops_at_shares(self, shares: Sequence[Sequence[float]], length: int, one_by_one: bool = False) -> float:
        """Forward FLOPs per token where these shares of the tokens take the routed passes of each thinking layer, as if
        none but those ran: a batch that gathers them rounds up to blocks, and one row of many may run for the others.
        """
        seen = self.seen(one_by_one)
        return self.once().flops(length, seen) + sum(self.routed_flops(layer, length, seen) for layer in shares)

    def routed_flops(self, shares: Sequence[float], length: int, seen: int | None) -> float:
        """The part of one layer in `flops_at_shares`."""
        layer, keys_values = self.layer().flops(length, seen), 2 * self.d_model * self.layer().kept
        holds = RULES[self.rule].holds
        total, changed = 0.0, 1.0
        for share in shares:
            if share == 0 and holds:
                continue
            if share > 0:
                total += share * (layer - keys_values) + changed * keys_values
                changed = 0.0
            changed = max(changed, share) if holds else 1.0
        return total

    def cache_bytes_per_token(self, iterations: int | None, itemsize: int = 4) -> int:
        routed = ((iterations or self.mean_iterations) - 1) * len(self.thinking)
        return (self.n_layers + routed) * self.layer().kept * itemsize

    def issues(self) -> list[str]:
        found = super().issues()
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
        return found
