"""`--trainer.strategy fsdp2`: weights, gradients and the optimizer's state divided among the devices (FSDP2).

Each device holds a part of every parameter and gathers a layer's when it runs. Lightning's ModelParallelStrategy does
the rest; this file says how a network is divided, and that a state is one whole file, as it is for every other run:
what one device saved, several can check.

    layers outside the loop    gathered for each run, freed after it
    layers inside the loop     gathered once for all iterations of a forward pass, and kept for the backward pass: freed
                               after each run they would be gathered R times
    everything else            embedding, head, norms, injection: gathered with the whole model
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import nn
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from mull.models import LanguageModel
from mull.models.layers import Layer

NAME = "fsdp2"


class Sharded(ModelParallelStrategy):
    """ModelParallelStrategy over all devices as one group, with states in one file."""

    def __init__(self, **options: Any) -> None:
        super().__init__(data_parallel_size=1, tensor_parallel_size=1, save_distributed_checkpoint=False, **options)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


StrategyRegistry.register(NAME, Sharded, description="FSDP2 over all devices")


def shard(network: nn.Module, mesh: Any) -> None:
    """Divide a network's parameters over a mesh of devices, once."""
    if is_sharded(network):
        return
    looped = {id(layer) for layer in getattr(network, "core", ())}
    for layer in network.modules():
        if type(layer) is Layer:  # a routed one runs in parts, and is gathered with the whole
            fully_shard(layer, mesh=mesh, reshard_after_forward=id(layer) not in looped)
    fully_shard(network, mesh=mesh)
    register_fsdp_forward_method(network, "calibrate")  # which runs the layers too


def check_known(network: nn.Module) -> None:
    """Raise a ValueError for a network of one's own, whose layers are not known."""
    if not isinstance(network, LanguageModel):
        raise ValueError(f"strategy: {NAME} divides models of mull, and not a {type(network).__name__}; take ddp")


def is_sharded(network: nn.Module) -> bool:
    """Whether the parameters of a network are divided among devices."""
    return any(isinstance(parameter, DTensor) for parameter in network.parameters())


def whole(norm: torch.Tensor) -> torch.Tensor:
    """A number of divided tensors as each device can read it."""
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
