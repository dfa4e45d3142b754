"""Optimizers and their schedule: AdamW, and Muon (muon.py) for the matrices with AdamW for the rest.

Parameters fall into three groups by the roles that their modules declare (models/roles.py): matrices inside the layers
(weight decay; Muon's share), tables such as embedding and head (weight decay), and vectors such as norms and biases (no
decay; a matrix that starts at a value of its own, like the identity, is among them).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mull.models.roles import parameter_roles
from mull.training.muon import Muon, NumberType


class OptimizerRecipe(ABC):
    """What the YAML names; builds the optimizer once the network exists.

    Attributes:
        needs_whole_matrices: whether it cannot work on parameters that are divided among devices (fsdp2).
    """

    needs_whole_matrices: ClassVar[bool] = False

    @abstractmethod
    def build(self, network: nn.Module) -> torch.optim.Optimizer: ...


class AdamW(OptimizerRecipe):
    """torch.optim.AdamW for everything.

    Args:
        lr: learning rate at the plateau of the schedule.
        betas: decay of the running mean and of the running square.
        weight_decay: decoupled decay of matrices, embedding and head.

    Raises:
        ValueError: a rate or the decay is below 0 or no finite number, or a beta does not lie in [0, 1).
    """

    def __init__(self, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.95), weight_decay: float = 0.1) -> None:
        check_rates(lr=lr, weight_decay=weight_decay)
        check_shares(betas=betas)
        self.lr, self.betas, self.weight_decay = lr, betas, weight_decay

    def build(self, network: nn.Module) -> torch.optim.Optimizer:
        matrices, embeddings, vectors = parameter_groups(network)
        return self.over(matrices + embeddings, vectors)

    def over(self, decayed: list[Tensor], vectors: list[Tensor]) -> torch.optim.Optimizer:
        groups = [{"params": decayed, "weight_decay": self.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        return torch.optim.AdamW([group for group in groups if group["params"]], lr=self.lr, betas=self.betas)


class MuonAdamW(AdamW):
    """Muon for the matrices inside the layers, AdamW for embedding, head and vectors.

    Args:
        matrix_lr: learning rate of Muon, whose updates are scaled to the size of AdamW's (0.2 sqrt of the larger side).
        momentum: of Muon.
        lr: learning rate of AdamW.
        betas: as for `AdamW`.
        weight_decay: as for `AdamW`; it is Muon's too.
        orthogonalize_in: number type of Muon's matrix products: float32, bfloat16, or auto, the one that the device
            has units for. Name it where machines of several kinds must agree to the last digit.

    Raises:
        ValueError: as for `AdamW`, of the momentum as of a beta.
    """

    needs_whole_matrices: ClassVar[bool] = True

    def __init__(
        self,
        matrix_lr: float = 3e-3,
        momentum: float = 0.95,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.1,
        orthogonalize_in: NumberType = "auto",
    ) -> None:
        super().__init__(lr, betas, weight_decay)
        check_rates(matrix_lr=matrix_lr)
        check_shares(momentum=(momentum,))
        self.matrix_lr, self.momentum, self.orthogonalize_in = matrix_lr, momentum, orthogonalize_in

    def build(self, network: nn.Module) -> torch.optim.Optimizer:
        matrices, embeddings, vectors = parameter_groups(network)
        muon = Muon(matrices, self.matrix_lr, self.momentum, self.weight_decay, self.orthogonalize_in)
        return Together(muon, self.over(embeddings, vectors))


class Together(torch.optim.Optimizer):
    """Several optimizers that behave as one, so that Lightning's automatic optimisation can drive them."""

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        self.optimizers = optimizers
        super().__init__([group for each in optimizers for group in each.param_groups], {})

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, state_dict["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        # loading replaces the groups of each optimizer, and a schedule writes to ours: they must stay the same objects
        self.param_groups = [group for each in self.optimizers for group in each.param_groups]


def check_rates(**rates: float) -> None:
    """Raise a ValueError for a learning rate or a decay that is below 0 or no finite number."""
    for name, rate in rates.items():
        if not 0 <= rate < math.inf:
            raise ValueError(f"{name} must be a number of at least 0, not {rate}")


def check_shares(**shares: tuple[float, ...]) -> None:
    """Raise a ValueError for what a running mean keeps of itself at each step, where it is not in [0, 1)."""
    for name, kept in shares.items():
        if not all(0 <= share < 1 for share in kept):
            raise ValueError(f"{name} must lie at 0 or above and below 1, not {', '.join(map(str, kept))}")


def parameter_groups(network: nn.Module) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """The network's parameters as (matrices, tables, vectors), by their roles (models/roles.py)."""
    groups: dict[str, list[Tensor]] = {"matrix": [], "table": [], "vector": []}
    for _, parameter, role in parameter_roles(network):
        groups["matrix" if role == "output" else role].append(parameter)
    return groups["matrix"], groups["table"], groups["vector"]


def warmup_stable_decay(step: int, max_steps: int, warmup_steps: int, decay_share: float) -> float:
    """Factor on the learning rate at optimizer step 0 .. max_steps - 1: linear up, flat, linear down to zero.

    Args:
        warmup_steps: length of the climb.
        decay_share: share of max_steps, at the end, over which it falls.
    """
    warm = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    decay_steps = decay_share * max_steps
    return warm * (min(1.0, (max_steps - step) / decay_steps) if decay_steps else 1.0)
