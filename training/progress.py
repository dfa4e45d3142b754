"""What a user sees while a run trains: a bar on a terminal, now and then a line elsewhere.

Both count optimizer steps of the whole run, whatever is accumulated and wherever it was gone on from. Of several
processes only the first one shows anything.
"""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar

from mull.checkpoints.quantities import NATS, number
from mull.training.saying import on_terminal, say

EVERY = 30.0  # seconds between two lines


def make_progress() -> ProgressBar:
    """The bar for a terminal, the lines for anything else."""
    return Bar() if on_terminal() else Lines()


class Bar(RichProgressBar):
    """Lightning's rich bar over optimizer steps, with short names for loss, iterations drawn and tokens per second."""

    @property
    def total_train_batches(self) -> int:
        return int(self.trainer.lightning_module.total_steps)  # type: ignore[arg-type]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, trainer.global_step - 1)

    def _get_train_description(self, current_epoch: int) -> str:
        return "training"  # the data seldom ends, so epochs are not what is counted

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        items = super().get_metrics(trainer, pl_module)
        items.pop("v_num", None)
        return {name.removeprefix("train/").replace("tokens_per_second", "tokens/s"): v for name, v in items.items()}


class Lines(ProgressBar):
    """A line every half minute and at the last step: steps, loss, tokens per second, time left."""

    def __init__(self) -> None:
        super().__init__()
        self.enabled = True
        self.began, self.began_at, self.told = 0.0, 0, 0.0  # time and step of the start, time of the last line

    def disable(self) -> None:
        self.enabled = False

    def enable(self) -> None:
        self.enabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.began = self.told = time.monotonic()
        self.began_at = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now, step, total = time.monotonic(), trainer.global_step, int(pl_module.total_steps)  # type: ignore[arg-type]
        last = step >= total
        if not self.enabled or not trainer.is_global_zero or not (last or now - self.told >= EVERY):
            return
        self.told = now
        values = trainer.callback_metrics
        said = [f"step {step:,} of {total:,}"]
        if "train/loss" in values:
            said.append(f"loss {number(float(values['train/loss']), NATS)}")
        if "train/tokens_per_second" in values:
            said.append(f"{float(values['train/tokens_per_second']):,.0f} tokens/s")
        if step > self.began_at and not last:
            said.append(f"{duration((now - self.began) / (step - self.began_at) * (total - step))} left")
        say(", ".join(said))


def duration(seconds: float) -> str:
    """A time for people: 40 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
