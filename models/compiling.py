"""Compiled blocks of layers: `layers.through` for torch.compile, once for decoding and once for training.

A block is the prelude, the core or the coda. What is compiled is the block and never the loop around it, so that one
compilation serves all iteration counts.

torch finds compiled code by the code object of the function, so functions with code objects of their own are compiled:
models, and the blocks of one model, never count into each other's limit of compilations.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from mull.models.layers import Join, through
from mull.models.positions import Context

Through = Callable[..., Tensor]  # with the arguments of `layers.through`


def own_code() -> Through:
    """`layers.through` with a code object of its own."""
    return FunctionType(through.__code__.replace(), through.__globals__, argdefs=through.__defaults__)


def compiled_for_decoding(device: torch.device) -> Through:
    """A block for calls of one token a row behind a cache, for a model on this device."""
    # Guards on modules would take a tenth of the time. Without them compiled code must not be shared with other models.
    unguarded: Any = torch.compiler.skip_guard_on_all_nn_modules_unsafe
    on_cpu = device.type == "cpu"  # elsewhere a wrapper in C++ would need that device's own headers
    options = {"guard_filter_fn": unguarded, "cpp_wrapper": on_cpu}
    return torch.compile(own_code(), dynamic=True, options=options)


class TrainingBlocks:
    """The blocks of a model for calls without a cache, each compiled by itself when it is first met."""

    def __init__(self) -> None:
        self.blocks: dict[int, Through] = {}  # by the number of a block's first layer

    def run(self, layers: nn.ModuleList, x: Tensor, context: Context, first: int, join: Join | None) -> Tensor:
        """`layers.through`, compiled."""
        if first not in self.blocks:
            self.blocks[first] = torch.compile(own_code(), fullgraph=True)
        if torch.is_grad_enabled() and not x.requires_grad:
            x = x.detach().requires_grad_()  # a first state, for which the block would be compiled once more
        return self.blocks[first](layers, x, context, 0, 0, join)  # slots are for caches: one block for all iterations
