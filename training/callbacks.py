"""What is watched during training: the loss by depth, two failures that the loss does not show, and the speed.

A looped model can fail while its loss still falls. Its state *collapses* if all positions carry the same vector (token
correlation near 1); it *ignores the loop* if one iteration answers as well as the mean count r. The validation sweep
shows both at little cost (Huginn, arXiv 2502.05171, sections 4.2 and 4.3).
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data.distributed import DistributedSampler

from mull.checkpoints.quantities import NATS, number
from mull.models import LanguageModel, ModelOutput, Reading
from mull.models.labels import scored, token_losses
from mull.training.data.traces import NOT_JUDGED
from mull.training.losses import judgement_losses
from mull.training.module import Batch, TrainingModule
from mull.training.ranks import over_ranks
from mull.training.thresholds import calibrate

KINDS = ("loss", "accuracy", "reward_loss", "reward_accuracy")  # logged at each count; the last two of a process reward


class DepthValidation(pl.Callback):
    """Logs loss and accuracy at every count of the validation sweep, e.g. `val/loss@8`, and `val/loss` and
    `val/accuracy` at the mean count.

    Of a network with a process reward, where batches hold judgements of steps, it logs `val/reward_loss@8` and
    `val/reward_accuracy@8`, the share of steps that the reward and the judgement put on the same side of one half. It
    also logs `val/token_correlation`, and warns of a collapsed state and of an ignored loop.

    Losses are in nats for each scored token, or each judged step. Means are over all of them of all devices together,
    as if one device had seen every batch once: devices add up sums, and leave out what was dealt to them a second time.

    Args:
        collapse_above: token correlation above which the state counts as collapsed.
        ignored_below: the loop counts as ignored if the loss at the mean count is less than this many nats below the
            loss at 1 iteration.
        after_step: the first optimizer step that is warned of, since an untrained model does ignore its loop.
    """

    def __init__(self, collapse_above: float = 0.98, ignored_below: float = 0.005, after_step: int = 500) -> None:
        self.collapse_above, self.ignored_below, self.after_step = collapse_above, ignored_below, after_step
        self.sums: dict[str, float] = defaultdict(float)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.sums.clear()

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert isinstance(outputs, ModelOutput)
        once = 0 if is_repeat(trainer, batch_idx, dataloader_idx) else 1
        labels = batch["labels"]
        values = batch.get("values", torch.full_like(labels, NOT_JUDGED))
        readings: dict[str, Reading] = {f"@{count}": reading for count, reading in outputs.readings.items()}
        for name, reading in (readings or {"": outputs}).items():
            self.sums[f"loss{name}"] += once * float(token_losses(reading.logits, labels).sum())
            self.sums[f"accuracy{name}"] += once * int(((reading.logits.argmax(-1) == labels) & scored(labels)).sum())
            if reading.value is not None:
                alike = ((reading.value > 0) == (values > 0.5)) & (values >= 0)
                self.sums[f"reward_loss{name}"] += once * float(judgement_losses(reading.value, values).sum())
                self.sums[f"reward_accuracy{name}"] += once * int(alike.sum())
        self.sums["scored"] += once * int(scored(labels).sum())
        self.sums["judged"] += once * int((values >= 0).sum())
        self.sums["correlation"] += once * float(token_correlation(outputs.state))
        self.sums["batches"] += once

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        sums = over_ranks(trainer, self.sums)
        if not sums.get("batches"):
            return
        if not sums["scored"]:
            rank_zero_warn("no position of the validation batches is scored (all labels are -100): there is no loss")
            return
        means = {k: v / sums["scored"] for k, v in sums.items() if k.startswith(("loss", "accuracy"))}
        if sums["judged"]:
            means |= {k: v / sums["judged"] for k, v in sums.items() if k.startswith("reward")}
        correlation = sums["correlation"] / sums["batches"]
        mean_count = None if pl_module.iterations is None else round(pl_module.iterations.mean)
        at_mean = f"@{mean_count}"
        means |= {name.removesuffix(at_mean): value for name, value in means.items() if name.endswith(at_mean)}
        logged = {f"val/{name}": value for name, value in means.items()} | {"val/token_correlation": correlation}
        pl_module.log_dict(logged, sync_dist=True)
        if trainer.global_step >= self.after_step and not trainer.sanity_checking:
            self.warn(trainer.global_step, correlation, means, mean_count)

    def warn(self, step: int, correlation: float, means: dict[str, float], mean_count: int | None) -> None:
        """Warn of a collapsed state and of an ignored loop.

        Args:
            step: optimizer step.
            correlation: mean token correlation of the validation batches.
            means: loss by reading, `loss@1` and so on, and `loss` at the mean count.
            mean_count: mean iteration count of training; None for a network without a loop.
        """
        if correlation > self.collapse_above:
            rank_zero_warn(
                f"step {step}: the state has collapsed: token correlation {correlation:.3f} (1: all positions carry "
                "the same vector); lower the learning rate, warm up longer, or use wiring: sandwich"
            )
        if mean_count is None or mean_count == 1 or not {"loss@1", "loss"} <= means.keys():
            return
        gap = means["loss@1"] - means["loss"]
        if gap < self.ignored_below:
            rank_zero_warn(
                f"step {step}: the loop is ignored: loss {number(means['loss@1'], NATS)} at 1 iteration and "
                f"{number(means['loss'], NATS)} "
                f"at {mean_count}; use fewer layers outside the loop, a harder task, or a higher minimum of iterations"
            )


def check_monitored(callbacks: Iterable[Any], module: TrainingModule) -> None:
    """Raise a ValueError where a callback goes by a value that no validation logs: it would end the first of them.
    Callbacks of somebody's own may log what they like: where there are such, nothing is said."""
    callbacks = list(callbacks)
    if any(type(each).__module__.partition(".")[0] not in ("lightning", "mull") for each in callbacks):
        return
    sweeps = module.iterations is not None and "read_at" in module.accepted
    mean = None if module.iterations is None else round(module.iterations.mean)
    at = [f"@{count}" for count in module.validate_at] if sweeps else []
    at += [""] if not sweeps or mean in module.validate_at else []
    kinds = KINDS if getattr(module.network, "value_head", None) is not None else KINDS[:2]
    logged = [f"val/{kind}{where}" for kind in kinds for where in at]
    strict = [each for each in callbacks if isinstance(each, ModelCheckpoint) or getattr(each, "strict", False)]
    for callback in strict:
        asked = str(getattr(callback, "monitor", None))
        if asked.startswith("val/") and asked not in [*logged, "val/token_correlation"]:
            near = get_close_matches(asked, logged, 1) or logged
            left_out = asked in [f"val/{kind}" for kind in kinds]
            why = f": it is at the mean of {mean} iterations, which validate_at leaves out" if left_out else ""
            raise ValueError(f"{type(callback).__name__} goes by {asked}, which is not logged{why}; take {near[0]}")


def check_callbacks(callbacks: Iterable[Any], max_steps: int) -> None:
    """Raise a ValueError for a callback of Lightning that would make another run of this one, or none at all.

    Args:
        callbacks: those of the trainer.
        max_steps: its optimizer steps; -1 where their number is not known.
    """
    for callback in callbacks:
        name = type(callback).__name__
        if isinstance(callback, BatchSizeFinder | LearningRateFinder):
            value = "the learning rate" if isinstance(callback, LearningRateFinder) else "data.init_args.batch_size"
            raise ValueError(f"{name} changes what a run is as it trains: leave it out, and give {value} yourself")
        if isinstance(callback, GradientAccumulationScheduler):
            raise ValueError(
                f"{name} would train on batches again, which are numbered by steps times accumulated ones: leave it "
                "out, and set trainer.accumulate_grad_batches"
            )
        if isinstance(callback, StochasticWeightAveraging):
            raise ValueError(f"{name} keeps its average to itself: take EMAWeightAveraging, whose average is exported")
        if isinstance(callback, WeightAveraging) and max_steps > 0:
            by_step = any(callback.should_update(step_idx=step) for step in range(max_steps))
            if not by_step and not callback.should_update(epoch_idx=max_steps):
                raise ValueError(
                    f"{name} averages at none of the {max_steps} steps, 0 to {max_steps - 1}, and the initial weights "
                    "would be exported: begin earlier, or average more often"
                )


def is_repeat(trainer: pl.Trainer, batch_idx: int, dataloader_idx: int) -> bool:
    """Whether another device was dealt this validation batch too.

    A list of whole batches is dealt out one by one; where it is used up before all devices have as many, it begins
    anew.
    """
    loaders = trainer.val_dataloaders
    loader = loaders[dataloader_idx] if isinstance(loaders, list) else loaders
    sampler = getattr(loader, "sampler", None)
    if loader is None or not isinstance(sampler, DistributedSampler) or loader.batch_sampler is not None:
        return False
    return batch_idx * sampler.num_replicas + sampler.rank >= len(loader.dataset)


def token_correlation(state: Tensor) -> Tensor:
    """Mean cosine between the states (B, T, D) of different positions of a sequence, a scalar; 1 is collapse.

    Each state is centred over its features first, as the public reference does, so that a shared offset is no
    correlation.
    """
    state = state.float()
    unit = torch.nn.functional.normalize(state - state.mean(dim=-1, keepdim=True), dim=-1)
    positions = state.shape[1]
    if positions < 2:
        return torch.zeros(())
    total = unit.sum(dim=1).square().sum(dim=-1)  # the sum of all pairwise cosines, the diagonal included
    diagonal = unit.square().sum(dim=(1, 2))  # T ones, less those of states without direction
    return ((total - diagonal) / (positions * (positions - 1))).mean()


class Calibration(pl.Callback):
    """Sets the thresholds of routers before each validation, so that tokens are selected as they are in inference.

    The trained weights do not depend on the thresholds; an average of weights has thresholds of its own.
    """

    # Not in on_validation_start: averaged weights are put in place behind it, by a callback of the configuration, which
    # stands before ours (`TrainingCLI.instantiate_trainer`).
    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        network = pl_module.network
        if isinstance(network, LanguageModel):
            calibrate(network, trainer.val_dataloaders or [], n_tokens=4096)


class Throughput(pl.Callback):
    """Logs `train/tokens_per_second` of all ranks together, a moving average over about 20 batches."""

    def __init__(self) -> None:
        self.last: float | None = None
        self.rate: float | None = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        if self.last is not None:
            rate = batch["input_ids"].numel() * trainer.world_size / (now - self.last)
            self.rate = rate if self.rate is None else 0.95 * self.rate + 0.05 * rate
            pl_module.log("train/tokens_per_second", self.rate, prog_bar=True)
        self.last = now

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.last = None  # the next batch must not be charged with the time of the validation
