"""A looped language model in the manner of Ouro (arXiv 2510.25741): the whole stack is iterated, with an exit gate.

    s_0 = sqrt(D) E[x]
    s_t = norm( Layers(s_{t-1}) ),  t = 1 .. R            the norm at the end of each loop is part of it
    logits_t = E . s_t;   lambda_t = sigmoid(w . s_t + b), the chance to stop at t given none before

Written as a user would write it, from the outside: one file that registers itself. Deliberate deviation: the embedding
is scaled by sqrt(D) as everywhere in mull.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mull.models import IteratedModel, ModelConfig, Reading
from mull.models.cost import Cost
from mull.models.language_model import family, initialize
from mull.models.layers import Layer
from mull.models.positions import Context
from mull.models.roles import Role


@dataclass(frozen=True, kw_only=True)
class OuroConfig(ModelConfig):
    """Configuration of the family; see `ModelConfig` for the shared fields.

    Args:
        n_layers: layers of the stack.
        mean_iterations: loops in training; the default of forward.
    """

    model_type: ClassVar[str] = "ouro"

    n_layers: int = 2
    mean_iterations: int = 4

    @property
    def default_iterations(self) -> int:
        return self.mean_iterations

    @property
    def effective_depth(self) -> int:
        return self.mean_iterations * self.n_layers

    def once(self) -> Cost:
        return self.ends()

    def iteration(self) -> Cost:
        gate = Cost(parameters=self.d_model + 1, weights=self.d_model)
        return self.n_layers * self.layer() + gate

    def issues(self) -> list[str]:
        least = [name for name in ("n_layers", "mean_iterations") if getattr(self, name) < 1]
        return super().issues() + [f"{name} must be at least 1, not {getattr(self, name)}" for name in least]


@family
class OuroTransformer(IteratedModel):
    """A stack of layers that is looped whole. See the head of this file."""

    config_class: ClassVar[type[ModelConfig]] = OuroConfig
    config: OuroConfig
    roles: ClassVar[dict[str, Role]] = {"exit_gate.weight": "table"}

    def __init__(self, config: OuroConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.n_layers))
        self.exit_gate = nn.Linear(config.d_model, 1)
        initialize(self)
        nn.init.zeros_(self.exit_gate.bias)

    def enter(self, input_ids: Tensor, context: Context) -> Tensor:
        return self.embed(input_ids)

    def start(self, injected: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return injected

    def prepare(self, injected: Tensor) -> None:
        return None  # nothing is injected after the start

    def think(self, state: Tensor, prepared: Any, context: Context, iteration: int) -> Tensor:
        return self.final_norm(self.through(self.layers, state, context, 0, iteration))

    def read(self, state: Tensor, context: Context) -> Reading:
        weight = self.embedding.weight if self.head is None else self.head.weight
        return Reading(logits=nn.functional.linear(state, weight), exit_logit=self.halt(state))

    @property
    def can_halt(self) -> bool:
        return True

    def halt(self, state: Tensor) -> Tensor:
        return self.exit_gate(state).squeeze(-1)

    def gate_parameters(self) -> list[nn.Parameter]:
        return list(self.exit_gate.parameters())
