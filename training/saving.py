"""When a run's state is saved, and how a run ends before its last step.

A state is saved only right after an optimizer step: the gradients that accumulate between two steps are part of no
state. A callback, a time limit or a signal that ends training between two steps therefore waits for the next one.

A state counts only when everything that was logged up to it is on disk. It is written at the end of its step, before
Lightning logs that step's row, and becomes the last state when the next batch begins or training ends
(`Saving.commit`).

A validation has a state on either side. The one before it says that it has begun, and counts only where a signal ends
the run inside the validation, which the same line then does from its beginning. The one after it holds what callbacks
have made of the validation.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint, Timer

from mull.training.module import TrainingModule
from mull.training.states import NEXT, keep_next

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(SystemExit):
    """A signal has ended the training; the exit status is 128 + the number of the signal.

    Args:
        number: the signal.
        step: optimizer step whose state is saved; 0 if none is.
    """

    def __init__(self, number: int, step: int) -> None:
        super().__init__(128 + number)
        self.name, self.step = signal.Signals(number).name, step


class Saving(Checkpoint):
    """Saves the state of a run every few optimizer steps, at its end, and when it is told to stop.

    The first SIGTERM or SIGINT ends training after the step that it falls in, or before the next batch of a validation;
    the state of the last step is saved. The second ends it at once.

    Args:
        folder: where the states lie.
        every: optimizer steps between two states.
        identity: what decides the weights of this run (identity.py), saved with every state.
    """

    def __init__(self, folder: Path, every: int, identity: Callable[[], dict[str, Any]]) -> None:
        self.folder, self.every, self.identity = folder, every, identity
        self.before = 0  # optimizer steps before the present batch
        self.whole = True  # no gradients have accumulated since the last optimizer step
        self.due = False  # the state of the last step is to be kept
        self.validating = False  # the state that is being written is followed by its validation
        self.making_up = False  # the last start was ended inside a validation that this one has first
        self.extended = False  # the trainer believes in one more step, so as to make up for the last validation
        self.saved = 0  # optimizer steps of the last state
        self.pending: int | None = None  # optimizer steps of a state that is written and does not count yet
        self.postponed = False  # training was told to stop between two optimizer steps
        self.signal: int | None = None  # the signal that this process was sent
        self.stopping = False  # some process of the run was sent one
        self.handlers: dict[int, Any] = {}

    # signals --------------------------------------------------------------------------------------------------------

    def take_signals(self) -> None:
        """Take the signals over, also from Lightning, which would end training in the middle of a step."""
        if threading.current_thread() is threading.main_thread():
            found: dict[int, Any] = {number: signal.signal(number, self.receive) for number in SIGNALS}
            self.handlers = self.handlers or found

    def silence(self, trainer: pl.Trainer) -> None:
        """Keep Lightning from acting on SIGTERM, which it takes beside us from the start of a fit to its first step: it
        would end the run behind that step with an exit status of 0, and one of several processes would speak with the
        others in the middle of whatever they do."""
        trainer._signal_connector._sigterm_notifier_fn = lambda *_: None  # type: ignore[method-assign]

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: remember the first, end at once with the second."""
        if self.signal is not None:
            raise Stopped(number, self.saved)
        self.signal = number

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.give_signals_back()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.give_signals_back()

    def give_signals_back(self) -> None:
        """Let signals mean what they meant before; also after the trainer has put back the handlers that it found."""
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.stopping = self.stopping or self.signal is not None  # one may have come when all steps were done

    def leave_if_told(self) -> None:
        """Raise `Stopped` if a signal has come and its step is done and saved."""
        if self.stopping:
            raise Stopped(self.signal or signal.SIGTERM, self.saved)

    def ask(self, trainer: pl.Trainer) -> bool:
        """Whether some process of the run was sent a signal; all processes ask together."""
        self.stopping = self.stopping or trainer.strategy.reduce_boolean_decision(self.signal is not None, all=False)
        return self.stopping

    # steps ----------------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.take_signals()
        self.before = self.saved = trainer.global_step

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.commit(trainer)
        self.leave_if_told()
        if self.making_up:
            self.made_up(trainer)
        if batch_idx >= trainer.num_training_batches or trainer.global_step >= total_steps(trainer):
            uncount_batch(trainer)  # begun where the epoch or the run is over, and has no validation at its end
            raise StopIteration  # which is how the trainer's loop over batches is left
        self.before = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.whole = trainer.global_step > self.before
        if not self.whole:
            self.postpone(trainer)
            return
        trainer.should_stop = trainer.should_stop or self.postponed
        self.postponed = False
        step = trainer.global_step
        skipping = isinstance(pl_module, TrainingModule) and pl_module.skips.begun(step)  # it may be the last good one
        ends = step >= total_steps(trainer) or may_stop(trainer)
        self.due = self.ask(trainer) or step % self.every == 0 or skipping or ends
        if validates_in_next_step(trainer) or (self.due and not validates_now(trainer)):
            self.write(trainer)

    def postpone(self, trainer: pl.Trainer) -> None:
        """Let a stop wait for the next optimizer step."""
        self.postponed = self.postponed or trainer.should_stop
        trainer.should_stop = False

    # validations ----------------------------------------------------------------------------------------------------

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write a state that says that this validation has begun, before a callback puts other weights in place."""
        if trainer.sanity_checking:
            return
        validation_progress(trainer).total.reset_on_restart()
        if self.whole and validates_now(trainer):
            self.validating = True
            self.write(trainer)
            self.validating = False
        self.leave_validation_if_told(trainer)

    def on_validation_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not trainer.sanity_checking and trainer.world_size == 1:  # several may have different numbers of batches
            self.leave_validation_if_told(trainer)

    def leave_validation_if_told(self, trainer: pl.Trainer) -> None:
        """Raise `Stopped` if a signal has come, with the state of the step before the validation."""
        if self.ask(trainer):
            self.commit(trainer)
            self.leave_if_told()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the state again, with what callbacks made of the validation; early stopping may have ended training."""
        if trainer.sanity_checking:
            return
        self.made_up(trainer)
        if not self.whole:
            self.postpone(trainer)
        elif may_stop(trainer) or (not by_clock(trainer) and (self.ask(trainer) or self.due)):
            self.write(trainer)
        elif not by_clock(trainer):
            self.forget(trainer)
        self.leave_validation_if_told(trainer)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.making_up = self.due = bool(checkpoint.get("mull", {}).get("validating"))  # it is written again after it

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Where all steps are taken and only the last validation is missing, keep the trainer from ending at once.

        A run that is measured in epochs has no end of steps, and its trainer ends an epoch after its validation.
        """
        self.silence(trainer)
        self.extended = self.making_up and trainer.max_steps != -1
        trainer.fit_loop.epoch_loop.max_steps += self.extended

    def made_up(self, trainer: pl.Trainer) -> None:
        """Go on as usual: the missing validation is over, or does not come, since this start has none."""
        trainer.fit_loop.epoch_loop.max_steps -= self.extended
        self.making_up = self.extended = False

    # ends -----------------------------------------------------------------------------------------------------------

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save again what other callbacks did at the end of an epoch of data that ends; and the end, if nothing has."""
        self.made_up(trainer)
        ends, over = trainer.num_training_batches != float("inf"), trainer.global_step >= total_steps(trainer)
        if (ends and self.pending is not None) or ((over or may_stop(trainer)) and self.pending is None):
            self.write(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.commit(trainer)

    # files ----------------------------------------------------------------------------------------------------------

    def write(self, trainer: pl.Trainer) -> None:
        """Write the present state, which counts from the next `commit` on; fast_dev_run leaves nothing."""
        if not getattr(trainer, "fast_dev_run", False):
            trainer.save_checkpoint(self.folder / NEXT, weights_only=False)  # the optimizer too
            self.pending = trainer.global_step

    def forget(self, trainer: pl.Trainer) -> None:
        """Let a state that was written count for nothing."""
        if trainer.is_global_zero:
            (self.folder / NEXT).unlink(missing_ok=True)
        self.pending = None

    def commit(self, trainer: pl.Trainer) -> None:
        """Bring the log onto the disk, then make the state that was written the last one."""
        if self.pending is None:
            return
        for logger in trainer.loggers:
            logger.save()
            if hasattr(logger, "commit"):
                logger.commit()
        if trainer.is_global_zero:
            keep_next(self.folder)
        self.saved, self.pending = self.pending, None

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add what decides the weights, and whether this is the end; a time limit counts anew when the run goes on."""
        finished = is_end(trainer) and not self.validating
        checkpoint["mull"] = {"identity": self.identity(), "finished": finished, "validating": self.validating}
        if self.validating:
            begin_validation(checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"])
        for timer in timers(trainer):
            checkpoint["callbacks"].pop(timer.state_key, None)


def total_steps(trainer: pl.Trainer) -> int:
    """The optimizer step with which the run is finished: max_steps, or fewer where max_epochs end before."""
    module = trainer.lightning_module
    assert isinstance(module, TrainingModule)
    return module.total_steps


def may_stop(trainer: pl.Trainer) -> bool:
    """Whether training was told to stop and has taken its least number of steps and epochs."""
    enough = trainer.global_step >= (trainer.min_steps or 0) and trainer.current_epoch >= (trainer.min_epochs or 0)
    return trainer.should_stop and enough


def validates_now(trainer: pl.Trainer) -> bool:
    """Whether a validation comes right after the present batch; not one that the clock decides on."""
    loop, fetcher = trainer.fit_loop.epoch_loop, trainer.fit_loop._data_fetcher
    assert fetcher is not None
    return not by_clock(trainer) and not loop.val_loop.skip and loop._should_check_val_fx(fetcher)


def by_clock(trainer: pl.Trainer) -> bool:
    """Whether validations come after a time, so that a run that goes on has them elsewhere."""
    return getattr(trainer, "_val_check_time_interval", None) is not None


def validates_in_next_step(trainer: pl.Trainer) -> bool:
    """Whether a validation comes between the batches of the next optimizer step, when no state can be written."""
    loop, every = trainer.fit_loop.epoch_loop, trainer.val_check_batch
    done = 1 + (loop.total_batch_idx if trainer.check_val_every_n_epoch is None else loop.batch_idx)
    ahead = range(1, trainer.accumulate_grad_batches)
    return every is not None and any((done + batches) % every == 0 for batches in ahead)


def validation_progress(trainer: pl.Trainer) -> Any:
    """The trainer's count of validation batches."""
    return trainer.fit_loop.epoch_loop.val_loop.batch_progress


def uncount_batch(trainer: pl.Trainer) -> None:
    """Let the trainer's count of batches leave the present one out, which is not trained on."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    for counts in (progress.total, progress.current):
        counts.ready -= 1


def begin_validation(progress: dict[str, Any]) -> None:
    """Let the saved count of validation batches say that the first one has begun, so that they are done anew."""
    for counts in (progress["total"], progress["current"]):
        counts["ready"] += 1
        counts["started"] += 1


def timers(trainer: pl.Trainer) -> list[Timer]:
    """The callbacks that limit the time of a training."""
    return [callback for callback in trainer.callbacks if isinstance(callback, Timer)]  # type: ignore[attr-defined]


def is_out_of_time(trainer: pl.Trainer) -> bool:
    """Whether a time limit has been reached."""
    remaining = [timer.time_remaining() for timer in timers(trainer)]
    return any(seconds is not None and seconds <= 0 for seconds in remaining)


def is_end(trainer: pl.Trainer) -> bool:
    """Whether the run is finished: all steps are taken, or a callback other than a time limit has ended it."""
    return trainer.global_step >= total_steps(trainer) or (may_stop(trainer) and not is_out_of_time(trainer))
