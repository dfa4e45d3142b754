"""Muon in the number type that the device is fast in.

    B <- m B + (1 - m) G                           momentum of the gradient G of a matrix
    U  = orthogonal((1 - m) G + m B)               Nesterov's look ahead
    W <- (1 - lr decay) W - lr 0.2 sqrt(max side) U

`orthogonal` replaces the singular values of a matrix by numbers near 1 (about 0.7 to 1.2), in five rounds of a
Newton-Schulz iteration whose coefficients are those of Keller Jordan's Muon. The scale 0.2 sqrt(max side) gives an
update the size of one of AdamW's (arXiv 2502.16982).

torch.optim.Muon does the same and always orthogonalises in bfloat16. A CPU without units for bfloat16 emulates it, many
times slower than float32; the rest of the arithmetic is torch's, operation for operation, so that in bfloat16 the two
agree bit for bit (tests/training/test_muon.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

NumberType = Literal["auto", "float32", "bfloat16"]

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of X, X X^T X and (X X^T)^2 X in a round
ROUNDS = 5
SMALLEST_NORM = 1e-7  # the least that a matrix is divided by


class Muon(torch.optim.Optimizer):
    """Muon for matrices; see the head of this file.

    Args:
        matrices: parameters of two dimensions.
        lr: learning rate; the update is multiplied by the scale above as well, 0.2 sqrt(max side).
        momentum: m above.
        weight_decay: decoupled decay.
        orthogonalize_in: number type of `orthogonal`; auto asks the device of each matrix (`fast_type`). It is no part
            of the saved state: a run that goes on elsewhere takes what is fast there.

    Raises:
        ValueError: a parameter is no matrix.
    """

    def __init__(
        self,
        matrices: Iterable[Tensor],
        lr: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
        orthogonalize_in: NumberType = "auto",
    ) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.orthogonalize_in = orthogonalize_in
        for parameter in (p for group in self.param_groups for p in group["params"]):
            if parameter.dim() != 2:
                raise ValueError(f"Muon is for matrices, not for a parameter of shape {tuple(parameter.shape)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is not None:
                    self.update(matrix, matrix.grad, group["lr"], group["momentum"], group["weight_decay"])
        return loss

    def update(self, matrix: Tensor, gradient: Tensor, lr: float, momentum: float, weight_decay: float) -> None:
        """One step of one matrix, in place."""
        state = self.state[matrix]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        mean = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        direction = orthogonal(gradient.lerp(mean, momentum), number_type(self.orthogonalize_in, matrix.device))
        matrix.mul_(1 - lr * weight_decay)
        matrix.add_(direction, alpha=-lr * (0.2 * math.sqrt(max(matrix.shape))))


def orthogonal(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """U V^T, roughly, of a matrix U S V^T, computed in `dtype` and returned in it."""
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.to(dtype, copy=True)
    x = x.T if tall else x  # so that the squares below are of the shorter side
    x.div_(x.norm().clamp(min=SMALLEST_NORM))  # now no singular value is above 1
    for _ in range(ROUNDS):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def number_type(asked: NumberType, device: torch.device) -> torch.dtype:
    """The number type that was asked for on a device."""
    return fast_type(device.type) if asked == "auto" else {"float32": torch.float32, "bfloat16": torch.bfloat16}[asked]


@cache
def fast_type(device: str) -> torch.dtype:
    """bfloat16 on a device that says it has units for it, else float32; no timing, so equal machines agree."""
    if device == "cpu":
        ask = getattr(torch.cpu, "get_capabilities", None)  # older torch does not tell, and float32 is never slow
        return torch.bfloat16 if ask is not None and cpu_has_bfloat16(ask()) else torch.float32
    if device == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16  # as torch.optim.Muon


def cpu_has_bfloat16(capabilities: Mapping[str, Any]) -> bool:
    """Whether a CPU multiplies bfloat16 in hardware, by its flags: avx512_bf16 or amx_bf16, bf16 or sve_bf16 on Arm."""
    return any(there for flag, there in capabilities.items() if flag.endswith("bf16"))
