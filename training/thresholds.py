"""Thresholds of routers, set on held-out batches, so that tokens are selected in inference as often as in training."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mull.inference.mode import in_eval
from mull.models import LanguageModel
from mull.training.data.batches import Batch


def calibrate(network: LanguageModel, batches: Iterable[Batch], n_tokens: int = 32768) -> None:
    """Set the thresholds of a network's routers on about n_tokens tokens of held-out batches.

    Rows are taken from all batches, evenly: batches come difficulty by difficulty, and routers that have seen the first
    ones only would send too many tokens of the others through a pass. A network without routers is left as it is.

    Args:
        network: the network; left in the mode that it is in.
        batches: held-out batches; of more than 64 n_tokens tokens the first ones are looked at.
        n_tokens: how many tokens are wanted; there may be fewer.
    """
    if not network.config.routed_layers:
        return
    rows: list[Tensor] = []
    seen = 0
    for batch in batches:
        rows += batch["input_ids"]
        seen += batch["input_ids"].numel()
        if seen >= 64 * n_tokens:
            break
    wanted = min(len(rows), math.ceil(len(rows) * n_tokens / max(1, seen)))
    taken = [rows[i * len(rows) // wanted] for i in range(wanted)]
    if not taken:
        return
    ids = pad_sequence(taken, batch_first=True)
    lengths = torch.tensor([len(row) for row in taken])
    there = torch.arange(ids.shape[1])[None] < lengths[:, None]
    with in_eval(network):
        network.calibrate(ids.to(network.device), None if bool(there.all()) else there.long().to(network.device))
