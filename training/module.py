"""The LightningModule: one training batch, one validation sweep, and the optimizer. Lightning's Trainer does the rest.

Depth and randomness are data. For training batch i, of B sequences, of a run with the seed `seed`, the module draws

    R   = iterations(seed, i, B)     iteration count: an integer, or one for each sequence, (B,)
    c   = capacity(seed, i, R - 1)   share of the tokens that each routed pass takes, where a sampler is given
    k   = window(seed, i)            iterations that the gradient passes through, where the sampler draws them too
    s_0 = a random initial state, from a generator whose seed is a function of (seed, rank, i); with `carry`, where the
          batch is the one before once more, the state which that ended in (carrying.py)

and hands them to the network. R, c and k are the same on every rank, counts by sequence too, so that no rank waits for
a deeper one; s_0 is each rank's own; a resumed run sees the same draws, and goes on from the same carried state.
Batches that are accumulated into one optimizer step have draws of their own: a step of two batches has seen two depths.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from mull.models import ModelOutput
from mull.models.config import MAX_CONFIGURED
from mull.models.loop import check_count, counts_around
from mull.training.alarms import vital_signs
from mull.training.capacities import CapacitySampler
from mull.training.carrying import Carried, check_carry
from mull.training.data.order import check_room
from mull.training.data.streams import Stream
from mull.training.iterations import IterationSampler
from mull.training.losses import LastIteration, Loss
from mull.training.optimizers import AdamW, OptimizerRecipe, warmup_stable_decay
from mull.training.ranks import over_ranks
from mull.training.sharding import check_known, shard, whole
from mull.training.skips import Skips
from mull.training.weighting import Weighting

# input_ids and labels, both (B, T) int64: labels[b, t] is the token to predict at position t, or -100 (not scored)
Batch = dict[str, Tensor]


class TrainingModule(pl.LightningModule):
    """Trains a network that maps (input_ids, iterations=...) to a `ModelOutput`.

    Args:
        network: a model of mull, or a network of your own, (input_ids, iterations=...) -> ModelOutput. With
            `iterations: null` it is called with input_ids alone. It must take backprop_iterations= if that is set here,
            and read_at= if the loss asks for readings. It is handed generator= (the source of a random initial state)
            and, in validation, read_at= only if its forward names them.
        iterations: sampler of the iteration count; None for a network without a loop.
        backprop_iterations: number of iterations, counted from the last, that the gradient passes through; None means
            all of them. A sampler that draws the window itself (`Progressive`) takes its place.
        capacity: sampler of the share of tokens that routed passes take, for a network whose forward takes capacity=;
            None leaves the share to the network's config.
        loss: what is minimised; None means the cross entropy after the last iteration.
        optimizer: recipe of the optimizer; None means AdamW.
        warmup_steps: optimizer steps over which the learning rate climbs.
        decay_share: share of max_steps, at the end, over which the learning rate falls to zero; 0 to 1.
        validate_at: iteration counts of the validation sweep; None means 1, r/2, r, 2r, 4r for a mean of r.
        auxiliary_weight: weight of the network's auxiliary loss, if its output has one, as routers do (arXiv
            2507.10524).
        carry: a batch with the input_ids of the one before it goes on from the state which that ended in, detached,
            instead of an initial one (carrying.py); for data with `repeat`, and a network whose forward takes state=.
        compile: compile the blocks of layers for training (torch.compile); a network of your own needs a method
            compile_training, and InnerThinkingTransformer is refused.
        checkpoint_iterations: keep only the states between iterations for the gradient, and compute the rest again;
            refused where the network's forward does not name it.
        seed: seed of the iteration counts, capacities and initial states.

    Raises:
        ValueError: a number is out of its range, or the network has no use for what is given.
    """

    def __init__(
        self,
        network: nn.Module,
        iterations: IterationSampler | None = None,
        backprop_iterations: int | None = None,
        capacity: CapacitySampler | None = None,
        loss: Loss | None = None,
        optimizer: OptimizerRecipe | None = None,
        warmup_steps: int = 100,
        decay_share: float = 0.3,
        validate_at: list[int] | None = None,
        auxiliary_weight: float = 0.001,
        carry: bool = False,
        compile: bool = False,
        checkpoint_iterations: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if warmup_steps < 0 or not 0 <= decay_share <= 1:
            raise ValueError(
                f"warmup_steps {warmup_steps} must be at least 0, decay_share {decay_share} between 0 and 1"
            )
        if not 0 <= auxiliary_weight < float("inf"):
            raise ValueError(
                f"auxiliary_weight must be a number of at least 0, not {auxiliary_weight}; 0 leaves it out"
            )
        if backprop_iterations is not None:
            check_count("backprop_iterations", backprop_iterations)
        self.accepted = set(inspect.signature(network.forward).parameters)  # a network of your own may take fewer
        if capacity is not None and (iterations is None or "capacity" not in self.accepted):
            raise ValueError(
                f"this {type(network).__name__} routes no tokens through passes: capacity is refused, leave it out"
            )
        self.network = network
        self.iterations = iterations
        self.backprop_iterations = backprop_iterations
        self.capacity = capacity
        self.loss = loss or LastIteration()
        self.optimizer = optimizer or AdamW()
        self.auxiliary_weight = auxiliary_weight
        self.warmup_steps, self.decay_share, self.seed = warmup_steps, decay_share, seed
        self.compiles, self.checkpoint_iterations = compile, checkpoint_iterations
        self.skips, self.weighting = Skips(), Weighting()
        self.signs: dict[str, Tensor] | None = None  # of the last batch, for the alarms
        self.total_steps = 0  # optimizer steps of the whole run, known once the trainer has its data
        self.validate_at = validation_counts(iterations) if validate_at is None else sorted(set(validate_at))
        self.check_network(carry)
        self.carried = Carried() if carry else None
        self.configure_model()  # refuses what cannot be compiled; nothing is compiled before it is first run
        if iterations is None and validate_at:
            raise ValueError(f"validate_at {validate_at} needs a sampler of iterations; leave it out")
        if iterations is not None and (not self.validate_at or self.validate_at[0] < 1):
            raise ValueError(f"validate_at must name iteration counts of at least 1, not {validate_at}")
        if iterations is not None and self.validate_at[-1] > MAX_CONFIGURED:
            raise ValueError(f"validate_at names {self.validate_at[-1]}, above the limit of {MAX_CONFIGURED:,}")
        self.loss.trained(network)  # says now if the network lacks what the loss trains

    def check_network(self, carry: bool) -> None:
        """Raise a ValueError where the network has no use for what is asked of it."""
        network, iterations, backprop_iterations = self.network, self.iterations, self.backprop_iterations
        windowed = iterations is not None and iterations.draws_window
        if windowed and backprop_iterations is not None:
            raise ValueError(
                f"{type(iterations).__name__} draws the gradient window of each batch: leave backprop_iterations "
                f"{backprop_iterations} out"
            )
        if (windowed or backprop_iterations is not None) and (
            iterations is None or "backprop_iterations" not in self.accepted
        ):
            raise ValueError(
                f"this {type(network).__name__} has no gradient window: "
                f"{type(iterations).__name__ if windowed else 'backprop_iterations'} is refused, leave it out"
            )
        if carry and (iterations is None or "state" not in self.accepted):
            raise ValueError(f"this {type(network).__name__} goes on from no state: carry is refused, leave it out")
        if self.checkpoint_iterations and (iterations is None or "checkpoint_iterations" not in self.accepted):
            raise ValueError(
                f"this {type(network).__name__} has no iterations that are computed again: checkpoint_iterations is "
                "refused, leave it out"
            )
        if self.compiles and not hasattr(network, "compile_training"):
            raise ValueError(f"a {type(network).__name__} has no compile_training: compile is refused, leave it out")

    def setup(self, stage: str) -> None:
        """Freeze what the loss does not train; begin with nothing carried, and check that it has somewhere to go."""
        self.carried = None if self.carried is None else Carried()  # a saved one is loaded after this
        data = getattr(self.trainer, "datamodule", None)
        check_carry(self.carried is not None, data, self.trainer.world_size)
        if stage == "fit":
            check_room(self.network, data)
        self.freeze_others()

    def freeze_others(self) -> None:
        """Freeze what the loss does not train."""
        trained = self.loss.trained(self.network)
        if trained is not None:
            self.network.requires_grad_(False)
            for parameter in trained:
                parameter.requires_grad_(True)

    def configure_model(self) -> None:
        """Make ready for training the network that is there: the one of `--from` has come after `__init__`."""
        if self.device_mesh is not None:
            self.check_dividing()
            shard(self.network, self.device_mesh["data_parallel"])
        if self.compiles and getattr(self.network, "compiled_training", None) is None:
            network: Any = self.network
            network.compile_training()

    def check_dividing(self) -> None:
        """Raise a ValueError unless the network can be divided among devices (fsdp2)."""
        if self.compiles:
            raise ValueError("compiled blocks do not gather divided layers: leave model.compile out, or take ddp")
        if self.optimizer.needs_whole_matrices:
            name = type(self.optimizer).__name__
            raise ValueError(f"{name} needs whole matrices, which fsdp2 divides: take AdamW, or strategy: ddp")
        check_known(self.network)

    @property
    def may_leave_out(self) -> bool:
        """Whether a batch may leave parameters of the network without a gradient: routers where nothing is routed, and
        an exit gate or a process reward that the loss does not ask."""
        gate = getattr(self.network, "can_halt", False) and not self.loss.asks_gate
        value = getattr(self.network, "value_head", None) is not None and not self.loss.asks_value
        return gate or value or "capacity" in self.accepted

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The scalar that is minimised on one batch: the loss, in nats for each scored token, and the auxiliary loss,
        both weighted by the positions that the batch scores where a step has several (weighting.py).

        What is logged is the loss of the batches of all devices together. A batch that scores no position has a loss of
        0, which is not logged. One whose loss is no finite number spoils the gradient of its step, on all devices, so
        that the step is skipped.
        """
        index = self.batch_index(batch_idx)
        count = total = int(self.loss.counted(batch).sum())  # asked first: later a device would have to finish before
        output = self.output_for(batch["input_ids"], index)
        loss = self.loss.of_batch(output, batch)
        told = loss.detach()
        devices = 1 if self._trainer is None else self.trainer.world_size
        if devices > 1:  # the loss and the number of all of them, so that they all decide alike
            sums = over_ranks(self.trainer, {"loss": float(told) * count, "scored": count})
            total = int(sums["scored"])
            told = torch.tensor(sums["loss"] / max(1, total), dtype=loss.dtype, device=loss.device)
        if not total:
            what = "scores no position (all labels are -100)" if self.loss.asks_tokens else "judges no step"
            rank_zero_warn(f"a training batch {what}, so nothing is learned from it")
        if not torch.isfinite(told):
            self.skips.reason, loss = f"the loss is {told.item()}", loss * math.nan
        if total and torch.isfinite(told):
            self.log("train/loss", told, prog_bar=True)
        else:
            self.unlog("train/loss")
        if self.carried is not None:
            if torch.isfinite(told):
                self.carried.keep(batch["input_ids"], output.state)
            else:  # what comes next would be lost with this batch
                self.carried.drop()
        answered = getattr(getattr(self._trainer, "datamodule", None), "answered", None)  # without one, nobody asks
        if answered is not None:
            self.log_dict(answered(index, output.logits.detach(), batch["labels"]))
        if output.auxiliary_loss is not None:
            self.log("train/auxiliary_loss", output.auxiliary_loss.detach())
            loss = loss + self.auxiliary_weight * output.auxiliary_loss
        if self.iterations is not None:
            self.log("train/iterations", output.iterations.float().mean(), prog_bar=True)
        self.signs = vital_signs(told, output) if total else None
        if self._trainer is None or devices == self.trainer.accumulate_grad_batches == 1:
            return loss
        return loss * self.weighting.weight(count, total, devices)

    def unlog(self, name: str) -> None:
        """Leave a value out of the log of this step, which would repeat that of an earlier one."""
        logged: Any = {} if self._trainer is None else self.trainer._results or {}
        for key in [key for key in logged if key.endswith(f".{name}")]:
            del logged[key]

    def batch_index(self, batch_idx: int) -> int:
        """Number of this batch, counted from the first step of the run, also where the run was resumed."""
        accumulated = self.trainer.accumulate_grad_batches
        return self.global_step * accumulated + batch_idx % accumulated

    def output_for(self, input_ids: Tensor, index: int) -> ModelOutput:
        """The network's output for input_ids (B, T), with the depth and the initial state of training batch `index`."""
        if self.iterations is None:
            return self.network(input_ids)
        generator = torch.Generator(input_ids.device)
        generator.manual_seed(int(Stream("initial state", self.seed, self.global_rank).at(index).integers(2**63 - 1)))
        drawn = self.iterations(self.seed, index, len(input_ids))
        passes = int(drawn.max()) if isinstance(drawn, Tensor) else drawn  # asked here: a device would have to wait
        drawn = drawn.to(input_ids.device) if isinstance(drawn, Tensor) else drawn
        options: dict[str, Any] = {}  # only what is asked for: a network of your own need not take the rest
        window = self.iterations.window(self.seed, index)
        if window is not None or self.backprop_iterations is not None:
            options["backprop_iterations"] = self.backprop_iterations if window is None else window
        if self.loss.read_at(drawn):
            options["read_at"] = self.loss.read_at(drawn)
        if self.checkpoint_iterations:
            options["checkpoint_iterations"] = True
        if self.capacity is not None:
            options["capacity"] = self.capacity(self.seed, index, passes - 1)
        state = None if self.carried is None else self.carried.state_for(input_ids)
        if state is not None:
            options["state"] = state
        if "generator" in self.accepted and (state is None or getattr(self.network, "is_noisy", False)):
            options["generator"] = generator
        return self.network(input_ids, iterations=drawn, **options)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What is carried, and what was skipped, are part of a saved state: a resumed run goes on from it."""
        checkpoint["skips"] = self.skips.state()
        if self.carried is not None:
            checkpoint["carried"] = self.carried.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.skips.restore(checkpoint.get("skips") or Skips().state())
        if self.carried is not None:
            self.carried.load_state_dict(checkpoint["carried"])

    def validation_step(self, batch: Batch, batch_idx: int) -> ModelOutput:  # type: ignore[override]
        """Answers at all counts of `validate_at`, read out of a single unroll; `DepthValidation` scores them.

        A network of your own that does not take read_at= answers once, at the mean count.
        """
        if self.iterations is None:
            return self.network(batch["input_ids"])
        if "read_at" not in self.accepted:
            return self.network(batch["input_ids"], iterations=round(self.iterations.mean))
        return self.network(batch["input_ids"], iterations=self.validate_at[-1], read_at=self.validate_at)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradient by its norm over all parameters, or drop it if it is not finite: the step changes nothing.

        Raises:
            NonFiniteLossError: this is the third step in a row whose gradient is not finite (skips.py).
        """
        if gradient_clip_algorithm not in (None, "norm"):
            asked = getattr(gradient_clip_algorithm, "value", gradient_clip_algorithm)  # the trainer's name of it
            raise ValueError(f"gradient_clip_algorithm must be norm, not {asked}")
        accumulated, devices = self.trainer.accumulate_grad_batches, self.trainer.world_size
        factor = 1.0 if accumulated == devices == 1 else self.weighting.factor(accumulated, devices)
        if factor != 1:
            for parameter in self.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)
        limit = gradient_clip_val or float("inf")  # 0 clips nothing, as it does elsewhere in the Trainer
        norm = whole(torch.nn.utils.clip_grad_norm_(self.parameters(), limit))
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None  # fp16 skips such steps by itself
        finite = bool(torch.isfinite(norm))
        if not finite and not scaled:
            self.skips.reason = self.skips.reason or f"the gradient norm is {norm.item()}"
        if self.skips.reason is None:
            self.skips.take()
        else:
            optimizer.zero_grad()  # parameters without a gradient are left alone, their decay and momentum too
            warning = self.skips.skip(self.global_step)
            if warning is not None:
                rank_zero_warn(warning)
        if finite:
            self.log("train/gradient_norm", norm)
        else:
            self.unlog("train/gradient_norm")
        if self.skips.total:
            self.log("train/skipped_steps", float(self.skips.total))

    def configure_optimizers(self) -> dict[str, Any]:  # type: ignore[override]
        """The optimizer, with the schedule of `warmup_stable_decay` over all steps of the run.

        These are trainer.max_steps, or fewer where the data ends and trainer.max_epochs are over before.

        Raises:
            ValueError: neither is set, or the data does not end, so the schedule has no end.
        """
        optimizer = self.optimizer.build(self.network)
        total = self.trainer.estimated_stepping_batches
        if not 1 <= total < float("inf"):
            raise ValueError("the schedule needs trainer.max_steps of at least 1, or max_epochs of data that ends")
        self.total_steps = int(total)

        def factor(step: int) -> float:
            return warmup_stable_decay(step, self.total_steps, self.warmup_steps, self.decay_share)

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def validation_counts(iterations: IterationSampler | None) -> list[int]:
    """The counts 1, r/2, r, 2r, 4r for a sampler of mean r; an empty list for a network without a loop."""
    if iterations is None:
        return []
    return counts_around(round(iterations.mean))
