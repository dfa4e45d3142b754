"""What several devices of a run know together, and what they must know of the model."""

from __future__ import annotations

from collections.abc import Mapping

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor


def over_ranks(trainer: pl.Trainer, sums: Mapping[str, float]) -> dict[str, float]:
    """The sums of all devices together; every device must have the same names."""
    if trainer.world_size == 1:
        return dict(sums)
    names = sorted(sums)
    device = trainer.strategy.root_device
    wide = torch.float32 if device.type == "mps" else torch.float64  # which mps lacks
    total = trainer.strategy.reduce(torch.tensor([sums[n] for n in names], dtype=wide, device=device), reduce_op="sum")
    assert isinstance(total, Tensor)
    return dict(zip(names, total.tolist(), strict=True))


def expect_unused(trainer: pl.Trainer, sometimes: bool) -> None:
    """Let DDP, which waits for the gradient of every parameter, look for those without one.

    Args:
        trainer: one that has not begun.
        sometimes: whether a batch may leave a parameter out; looking for it costs a little time.
    """
    strategy = trainer.strategy
    if sometimes and isinstance(strategy, DDPStrategy):
        strategy._ddp_kwargs.setdefault("find_unused_parameters", True)
