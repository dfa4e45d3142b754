"""What several devices of a run know together."""

from __future__ import annotations

from collections.abc import Mapping

import lightning.pytorch as pl
import torch
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
