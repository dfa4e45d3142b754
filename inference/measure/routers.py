"""What routers do: who takes each routed pass, and how sure they are of it.

met       share of the tokens that takes a pass, against the capacity asked for
entropy   mean over tokens of -p ln p - (1 - p) ln(1 - p), p = sigmoid(logit), in nats; ln 2 = 0.693 is a coin toss
dead      share of the tokens that take no routed pass in any layer          (dead-token ratio; MoR, arXiv 2507.10524)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from mull.checkpoints.quantities import NATS, PERCENT, number
from mull.inference.mode import evaluating
from mull.models import LanguageModel
from mull.models.config import Capacity
from mull.models.loop import check_count
from mull.models.selection import Selection, check_capacity

if TYPE_CHECKING:
    from rich.table import Table


class PassUse(NamedTuple):
    """One routed pass of one layer: `layer` from 0, `number` from 1; see the head of this file for the rest."""

    layer: int
    number: int
    asked: float
    met: float
    entropy: float


class RouterUses(NamedTuple):
    """All routed passes, by layer and number, and the share of dead tokens."""

    passes: list[PassUse]
    dead: float


@evaluating
@torch.inference_mode()
def router_uses(
    model: LanguageModel,
    batches: Iterable[tuple[Tensor, Tensor]],
    iterations: int | None = None,
    *,
    capacity: Capacity | None = None,
    selection: Selection | None = None,
) -> RouterUses:
    """What the routers do with batches (input_ids, labels), (B, T) each. Raises ValueError where nothing is routed."""
    default, layers = model.config.default_iterations, model.config.routed_layers
    count = check_count("iterations", (default or 1) if iterations is None else iterations)
    if not layers or count < 2:
        raise ValueError(f"nothing is routed at iterations={count} of this model: give 2 or more, to one with routers")
    asked = check_capacity(model.config.default_capacity if capacity is None else capacity, count - 1)  # type: ignore[arg-type]  # it routes
    tokens, dead = 0, 0
    met = entropy = torch.zeros(len(layers), count - 1, dtype=torch.float64)
    for input_ids, _ in batches:
        out = model(input_ids.to(model.device), count, capacity=capacity, selection=selection)
        assert out.selected is not None and out.router_logits is not None  # (B, T, layers, passes)
        p = torch.sigmoid(out.router_logits.double())
        met = met + out.selected.double().sum(dim=(0, 1)).cpu()
        entropy = entropy + (torch.special.entr(p) + torch.special.entr(1 - p)).sum(dim=(0, 1)).cpu()
        dead += int((~out.selected.flatten(2).any(dim=2)).sum())
        tokens += input_ids.numel()
    passes = [
        PassUse(layer, t + 1, asked[t], float(met[place, t]) / tokens, float(entropy[place, t]) / tokens)
        for place, layer in enumerate(layers)
        for t in range(count - 1)
    ]
    return RouterUses(passes, dead / tokens)


def router_table(uses: RouterUses) -> Table:
    """The passes as a table, the dead tokens under it."""
    from rich.table import Table

    table = Table("layer", "pass", "asked %", "met %", "entropy, nats", title="routed passes")
    for use in uses.passes:
        asked, met = number(use.asked, PERCENT), number(use.met, PERCENT)
        table.add_row(str(use.layer), str(use.number), asked, met, number(use.entropy, NATS))
    table.caption = f"{number(uses.dead, PERCENT)} % of the tokens take no routed pass"
    return table
