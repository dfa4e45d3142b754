"""The plane in which states differ most: their first two principal components.

Found by subspace iteration, so that no matrix of width by width is made. The start is fixed, and signs are chosen, so
the same states always give the same picture.

Shapes: N states, D model width.
"""

from typing import NamedTuple

import torch
from torch import Tensor

ROUNDS, SPARE = 16, 6


class Plane(NamedTuple):
    """`mean` (D,), `axes` (D, 2) of length 1, and `shares` of the variance that lie along them."""

    mean: Tensor
    axes: Tensor
    shares: tuple[float, float]

    def project(self, states: Tensor) -> Tensor:
        """(..., D) -> (..., 2) in fp32."""
        return (states.float() - self.mean) @ self.axes


def plane_of(states: Tensor) -> Plane | None:
    """The plane of states (N, D), without those that have left the numbers; None if there are no others. Directions
    without any variance are shown as zero."""
    x = states.float()
    x = x[x.isfinite().all(dim=1)]
    if not len(x):
        return None
    mean = x.mean(dim=0)
    x = x - mean
    width = min(2 + SPARE, *x.shape)
    basis = torch.randn(x.shape[1], width, generator=torch.Generator().manual_seed(0)).to(x)
    for _ in range(ROUNDS):
        basis = torch.linalg.qr(x.T @ (x @ basis)).Q
    _, lengths, within = torch.linalg.svd(x @ basis, full_matrices=False)
    axes = basis @ within[:2].T
    total = max(float(x.square().sum()), 1e-30)
    shares = [float(length.square()) / total for length in lengths[:2]]
    while axes.shape[1] < 2:
        axes, shares = torch.cat([axes, torch.zeros_like(axes[:, :1])], dim=1), [*shares, 0.0]
    largest = axes.abs().argmax(dim=0, keepdim=True)
    axes = axes * axes.gather(0, largest).sign()
    return Plane(mean, axes, (shares[0], shares[1]))
