"""A causal depthwise convolution over positions: a layer's way to carry something a fixed number of places.

    y_t = sum_{j = 0 .. k-1}  w_j * x_{t-j}         w_j in R^C, elementwise; x before the first position is zero

Inside the gated MLP (`convolution: mlp`) it stands between the product of gate and up and the projection down, as in
the Universal Reasoning Model (arXiv 2512.14693) and in FPRM; before attention (`convolution: attention`) its output is
added to what queries, keys and values are made of.

In a looped block it is what makes iterations buy length: each iteration carries a state up to k - 1 places to the
right by a rule that knows no positions, so that a row twice as long needs twice the iterations and nothing else.

It looks back even where attention looks both ways (`causal: false`): without positions it is then what order there is.

A token needs the x of the k - 1 tokens before it at the same layer and iteration. Behind a cache they are found there
(`Context.recent`), kept like keys and values. The sum is elementwise and in one order, so that cached, batched and
padded calls agree with plain ones to the last bit.

Shapes: B batch, T positions of this call, C channels, k kernel.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from mull.models.cache import Slot
from mull.models.positions import Context
from mull.models.roles import Role


class Convolution(nn.Module):
    """See the head of this file. (B, T, C) -> (B, T, C). `slot` is (layer, iteration), where x is kept.

    Args:
        channels: C.
        kernel: k >= 1.
    """

    roles: ClassVar[dict[str, Role]] = {"weight": "vector"}  # no matrix: every channel has k numbers of its own

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        bound = kernel**-0.5  # as torch starts a depthwise convolution
        self.weight = nn.Parameter(torch.empty(kernel, channels).uniform_(-bound, bound))

    def forward(self, x: Tensor, context: Context, slot: Slot) -> Tensor:
        recent, weights = context.recent(slot, x, len(self.weight)), self.weight.unbind(0)
        joined = weights[0] * recent[0]
        for weight, earlier in zip(weights[1:], recent[1:], strict=True):
            joined = joined + weight * earlier
        return joined
