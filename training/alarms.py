"""Alarms: one warning line where a training begins to go wrong, and a count of them in the log.

    alarms/loss          a batch whose loss stands far above the running mean
    alarms/state         the state's size leaps, or has grown tenfold
    alarms/residual      the last iteration moves the state far more, or far less, than it did
    alarms/router        a router that tells no token from another, or picks the same places in every row

Each compares a value of the batch with the running mean and deviation of the latest hundred or so. Batches of fewer
iterations than the sampler's mean (or the most that it draws, where that is less) are left out: they answer worse and
move more by design. At most one line for each alarm in 100 steps; all of them are counted. The running values are part
of the resumable state, so that a run that goes on warns as one without a stop would. Of several processes the first
one's batches are looked at.
"""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from mull.models import ModelOutput
from mull.training.iterations import IterationSampler

DEVIATIONS = 6.0  # running deviations that are far
KNOWN = 100  # values that must have been seen before one is far from them
APART = 100  # optimizer steps between two lines of one alarm
GROWN = math.log(10.0)  # of the state's size since it was first known
LEAST = {"loss": 0.1, "state": math.log(2.0), "residual": math.log(4.0)}  # nats, and logarithms of factors
IN_A_ROW = 100  # batches in which a router must look broken
FLAT = 1e-4  # standard deviation of a router's logits below which it tells no token from another


def vital_signs(loss: Tensor, output: ModelOutput) -> dict[str, Tensor]:
    """What the alarms look at, as small tensors without gradient: scalars, and (thinking layers, passes) of routers."""
    depth = output.iterations.max().double()  # of the row that takes most
    if output.selected is not None:  # and no position need take all passes that there are
        depth = torch.full_like(depth, 1.0 + output.selected.shape[-1])
    signs = {"loss": loss, "iterations": depth}
    signs["state"] = output.state.float().square().mean().sqrt()
    if output.residual is not None:
        signs["residual"] = output.residual.mean()
    if output.selected is not None and output.router_logits is not None and output.selected.shape[-1]:
        signs["spread"] = output.router_logits.float().std(dim=(0, 1))
        share = output.selected.float().mean(dim=0)  # of the rows, by position
        signs["disagreement"] = (share * (1 - share)).amax(dim=0)
    return {name: value.detach() for name, value in signs.items()}


class Running:
    """Mean and deviation of the latest hundred or so values."""

    def __init__(self) -> None:
        self.count, self.mean, self.variance = 0, 0.0, 0.0

    def far(self, value: float, least: float) -> float:
        """How far a value stands from the mean, where that is further than is usual and than `least`; otherwise 0."""
        away = value - self.mean
        usual = max(DEVIATIONS * math.sqrt(self.variance), least)
        return away if self.count >= KNOWN and abs(away) > usual else 0.0

    def add(self, value: float) -> None:
        self.count += 1
        share = max(1 / self.count, 1 / KNOWN)
        away = value - self.mean
        self.mean += share * away
        self.variance = (1 - share) * (self.variance + share * away**2)


class Alarms(pl.Callback):
    """See the head of this file."""

    def __init__(self) -> None:
        self.running = {name: Running() for name in LEAST}
        self.first_size: float | None = None  # logarithm of the state's size when it was first known
        self.broken: dict[str, int] = {}  # batches in a row in which a router has looked broken, by what is said of it
        self.counts: dict[str, int] = {}
        self.told: dict[str, int] = {}  # step of the last line

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        signs: dict[str, Tensor] | None = getattr(pl_module, "signs", None)
        if signs is not None:
            sampler = pl_module.iterations
            values = dict(zip(signs, read(signs), strict=True))
            if sampler is None or values["iterations"][0] >= usual_depth(sampler):  # type: ignore[arg-type]
                for kind, words in self.look(values, signs):
                    self.sound(kind, words, trainer.global_step)
            for kind, count in self.counts.items():
                pl_module.log(f"alarms/{kind}", float(count))

    def look(self, values: dict[str, list[float]], signs: dict[str, Tensor]) -> list[tuple[str, str]]:
        """What is alarming in a batch, by kind; its values join the running ones."""
        found = []
        for kind in LEAST:
            value = values.get(kind, [math.nan])[0]
            value = value if kind == "loss" else math.log(max(value, 1e-12)) if value == value else math.nan
            if not math.isfinite(value):  # such a step is skipped, and counted elsewhere
                continue
            away = self.running[kind].far(value, LEAST[kind])
            if away > 0 or (away and kind == "residual"):
                found.append((kind, described(kind, value, self.running[kind].mean)))
            self.running[kind].add(value)
        size = self.running["state"]
        if size.count >= KNOWN and self.first_size is None:
            self.first_size = size.mean
        if self.first_size is not None and size.mean > self.first_size + GROWN:
            found.append(("state", "the state has grown tenfold: lower the learning rate, or use wiring: sandwich"))
            self.first_size = size.mean
        if "spread" in values:
            found += self.look_at_routers(values["spread"], values["disagreement"], signs["spread"].shape[-1])
        return found

    def look_at_routers(self, spreads: list[float], disagreements: list[float], passes: int) -> list[tuple[str, str]]:
        """Which routers have looked broken for a while."""
        found, broken = [], {}
        for number, (spread, apart) in enumerate(zip(spreads, disagreements, strict=True)):
            which = f"the router of pass {number % passes + 2} in thinking layer {number // passes + 1}"
            said = []
            if spread < FLAT:  # of a pass without an answer it is no number
                said.append(f"{which} tells no token from another")
            elif apart == 0 and spread == spread:
                said.append(f"{which} picks the same places in every row, whatever the tokens are")
            for words in said:
                broken[words] = self.broken.get(words, 0) + 1
                if broken[words] % IN_A_ROW == 0:
                    found.append(("router", f"{words}: raise auxiliary_weight, or lower the learning rate"))
        self.broken = broken
        return found

    def sound(self, kind: str, words: str, step: int) -> None:
        """Count an alarm, and say it where the last line of its kind is long enough ago."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if kind not in self.told or step - self.told[kind] >= APART:
            self.told[kind] = step
            rank_zero_warn(f"step {step}: {words}")

    def state_dict(self) -> dict[str, Any]:
        running = {name: vars(each).copy() for name, each in self.running.items()}
        counted = {"broken": dict(self.broken), "counts": dict(self.counts), "told": dict(self.told)}
        return {"running": running, "first_size": self.first_size, **counted}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, values in state_dict["running"].items():
            vars(self.running[name]).update(values)
        self.first_size = state_dict["first_size"]
        self.broken, self.counts, self.told = (dict(state_dict[name]) for name in ("broken", "counts", "told"))


def usual_depth(sampler: IterationSampler) -> float:
    """A sampler's mean, within the least and the most that it draws."""
    return min(max(sampler.mean, sampler.minimum), sampler.maximum or math.inf)


def read(signs: dict[str, Tensor]) -> list[list[float]]:
    """The numbers of small tensors, brought from their device together."""
    flat = torch.cat([sign.flatten().float() for sign in signs.values()]).tolist()
    sizes, found, start = [sign.numel() for sign in signs.values()], [], 0
    for size in sizes:
        found.append(flat[start : start + size])
        start += size
    return found


def described(kind: str, value: float, mean: float) -> str:
    """An alarm about a value in words."""
    if kind == "loss":
        return f"the loss leaps to {value:.3g} from about {mean:.3g}; if it stays there, lower the learning rate"
    more, factor = value > mean, math.exp(abs(value - mean))
    if kind == "state":
        return f"the state is {factor:.3g} times as large as usual; if it stays so, lower the learning rate"
    return f"the last iteration moves the state {factor:.3g} times {'more' if more else 'less'} than usual" + (
        ": it no longer settles" if more else ": the loop does less and less"
    )
