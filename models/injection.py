"""Injections: how the prelude's output e re-enters every iteration, Inject(s, e).

    concat    A [s ; e], A a matrix D x 2D without bias                                      (Huginn, arXiv 2502.05171)
    add       s + e                                                                         (Huginn's small models)
    diagonal  exp(-dt exp(a)) * s + dt * B norm(e), a and dt > 0 vectors, B a matrix         (Parcae, arXiv 2604.12946)

What an injection makes of e is the same in every iteration, and is prepared once per forward. An injection of your own
is a class with the decorator `@INJECTIONS.register("name")`: it is then a value of the field `injection`.

Deliberate deviation from Parcae: dt is a softplus of its parameter, so that it stays positive.

Shapes: B batch, T positions, D model width.
"""

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mull.models.config import ModelConfig
from mull.models.cost import Cost, matrix, vector
from mull.models.layers import RMSNorm, is_plain
from mull.models.registry import Registry
from mull.models.roles import Role


class InjectionCost(NamedTuple):
    """What an injection costs once, on e, and in every iteration, on the state."""

    once: Cost = Cost()
    iteration: Cost = Cost()


class Injection(nn.Module, ABC):
    """Joins what is injected to the state; built from the configuration of the model."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()

    def prepare(self, injected: Tensor) -> Any:
        """What every iteration needs of e, (B, T, D): tensors of `IteratedModel.prepare`'s shapes."""
        return injected

    @abstractmethod
    def forward(self, state: Tensor, prepared: Any) -> Tensor:
        """State (B, T, D) and what was prepared -> the input of the core, (B, T, D)."""

    @staticmethod
    def cost(config: ModelConfig) -> InjectionCost:
        """What it costs; nothing, where the class does not say."""
        return InjectionCost()


INJECTIONS: Registry[type[Injection]] = Registry("injection")


@INJECTIONS.register("concat")
class ConcatInjection(Injection):
    """A [s ; e] = A_s s + A_e e: the first D columns of A act on the state; A_e e is the same in every iteration.

    What stands in the place of A and is no plain matrix (an adapter, say) is called as a whole, on [s ; e]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.adapter = nn.Linear(2 * config.d_model, config.d_model, bias=False)

    def prepare(self, injected: Tensor) -> Tensor:
        if not is_plain(self.adapter):
            return injected
        return F.linear(injected, self.adapter.weight.chunk(2, dim=1)[1])

    def forward(self, state: Tensor, prepared: Tensor) -> Tensor:
        if not is_plain(self.adapter):
            return self.adapter(torch.cat([state, prepared], dim=-1)).to(state.dtype)
        on_state = self.adapter.weight.chunk(2, dim=1)[0]
        return (F.linear(state, on_state) + prepared).to(state.dtype)  # autocast must not narrow the state

    @staticmethod
    def cost(config: ModelConfig) -> InjectionCost:
        square = matrix(config.d_model, config.d_model)
        return InjectionCost(square, square)


@INJECTIONS.register("add")
class AddInjection(Injection):
    """s + e."""

    def forward(self, state: Tensor, prepared: Tensor) -> Tensor:
        return state + prepared


@INJECTIONS.register("diagonal")
class DiagonalInjection(Injection):
    """exp(-dt exp(a)) * s + dt * B norm(e): every channel decays, so the carried state cannot grow without bound.

    Starts at Parcae's values: a = 0, dt such that the decay is sqrt(1/5), B the identity.
    """

    roles: ClassVar[dict[str, Role]] = {"write": "vector"}  # keeps its start, and does not decay

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        dt = -math.log(math.sqrt(1 / 5))
        self.log_rate = nn.Parameter(torch.zeros(config.d_model))
        self.raw_dt = nn.Parameter(torch.full((config.d_model,), math.log(math.expm1(dt))))
        self.write = nn.Parameter(torch.zeros(config.d_model, config.d_model).fill_diagonal_(1))  # B
        self.norm = RMSNorm(config.d_model, config.norm_eps)

    def prepare(self, injected: Tensor) -> Tensor:
        return F.softplus(self.raw_dt) * F.linear(self.norm(injected), self.write)

    def forward(self, state: Tensor, prepared: Tensor) -> Tensor:
        decay = torch.exp(-F.softplus(self.raw_dt) * torch.exp(self.log_rate))
        return decay * state + prepared

    @staticmethod
    def cost(config: ModelConfig) -> InjectionCost:
        return InjectionCost(once=matrix(config.d_model, config.d_model) + 3 * vector(config.d_model))
