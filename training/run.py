"""One training run, first line to last: read the configuration, go on where the folder left off, fit, save, measure.

FOLDER/                 the checkpoint folder (see checkpoints/store.py), written when training ends
FOLDER/trainer/         config.yaml, last.ckpt (everything needed to resume), previous.ckpt, threads.txt, logs/

A run is finished when all its optimizer steps are taken, or when a callback of its configuration has ended it. However
else it stops, its state is kept, and the same command line goes on, to the same weights as without the stop.

`run` (cli.py) is the configuration and what it builds: model, datamodule, trainer; folder; states, which is
FOLDER/trainer; saving, the callback that writes states; start, the checkpoint named by --from; resolved, every field
with its value; identity, what decides the weights. `there` (identity.py) is what the folder holds of this run:
exported, the finished checkpoint; state, the file to go on from; ended, training is over and only the export is
missing.
"""

from __future__ import annotations

import shlex
import shutil
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch.plugins.precision import DoublePrecision, HalfPrecision
from torch import nn

from mull.checkpoints.replacing import complete, replace_all
from mull.inference.measure.results import Result
from mull.training.carrying import check_carry
from mull.training.cli import TrainingCLI, quiet, read_configuration
from mull.training.companions import come_first, end_with_first, forget_first
from mull.training.data.order import check_order
from mull.training.export import export, measure, measured_examples
from mull.training.identity import Identity, Standing, check_place, identity_of, is_finished, standing
from mull.training.lock import only_run
from mull.training.losses import check_labels
from mull.training.records import begin, close, conclude, label
from mull.training.saving import Stopped
from mull.training.saying import say
from mull.training.sharding import is_sharded
from mull.training.skips import NonFiniteLossError
from mull.training.start import check_finished
from mull.training.states import LAST, PREVIOUS, damage, read_state, settle
from mull.training.threads import choose_threads


def train(args: list[str]) -> Path:
    """Run `mull train ARGS`; return the folder of the run.

    Raises:
        ValueError: the folder holds another run or is being trained in, or the configuration is wrong.
        NonFiniteLossError: the losses or gradients of three steps in a row are no numbers; the last good state stays.
        SystemExit: SIGTERM (status 143) or SIGINT (130) has ended the training; its state is saved.
    """
    quiet()
    run = read_configuration(args)
    check_place(run.folder)
    if run.config.trainer.fast_dev_run:
        try_out(run)
    elif run.trainer.is_global_zero:
        come_first()
        with only_run(run.folder):
            try:
                train_alone(run, shlex.join(["mull", "train", *args]))
            finally:
                close(run.trainer.loggers)
                forget_first()
    else:  # a further process of a run whose first one holds the lock, and exports and measures
        end_with_first()
        run.datamodule.prepare_data()
        run.identity = identify(run)
        there = standing(run.folder, run.identity, run.completed)
        if not there.exported and not there.ended:
            fit(run, there)
    return run.folder


def train_alone(run: TrainingCLI, command: str) -> None:
    """Finish the run, from whatever the folder holds of it; this process has the lock."""
    complete(run.folder)  # finishes a save that was killed
    check_together(run)
    run.datamodule.prepare_data()  # before anything is written: text that cannot be read is the user's to mend
    run.identity = identify(run)
    device = run.trainer.strategy.root_device
    if not is_finished(run.folder, run.identity, run.completed):
        settle(run.states)  # a damaged last.ckpt gives way to previous.ckpt
    there = standing(run.folder, run.identity, run.completed)
    if there.exported:
        say(f"{run.folder} holds the finished run of this configuration; pass --output to train it anew")
    elif there.ended or go_on(run, there):
        export(final_network(run), run.datamodule, run.folder, configuration_text(run), device)
    else:
        return
    (run.states / PREVIOUS).unlink(missing_ok=True)  # what it was kept for has ended well
    batches, steps = None, 0  # measuring shall cost less than training did, so batches trained on decide its size
    if (run.states / LAST).exists() and damage(run.states / LAST) is None:
        steps = read_state(run.states / LAST)["global_step"]
        batches = steps * run.trainer.accumulate_grad_batches * run.trainer.world_size
    examples = measured_examples(run.datamodule, batches)

    def log(results: list[Result]) -> None:
        if not steps:  # the state is lost, so nobody knows behind which step these are
            return
        if there.exported or there.ended:  # this process has not trained
            begin(run.trainer.loggers, steps, run.resolved, measures(run))
        conclude(run.trainer.loggers, results, steps)

    try:
        measure(run.folder, run.datamodule, run.model.validate_at or None, command, examples, log, device)
    except (KeyboardInterrupt, SystemExit) as told:
        if isinstance(told, SystemExit) and told.code != 128 + signal.SIGTERM:  # what a plugin ends with is its own
            raise
        ended = Stopped(signal.SIGINT if isinstance(told, KeyboardInterrupt) else signal.SIGTERM, steps)
        say(f"{ended.name}: {run.folder} is trained and saved; the same line measures it")
        raise ended from None


def check_together(run: TrainingCLI) -> None:
    """Raise a ValueError where network, data, loss and start do not go with each other."""
    check_order(run.model.network, run.datamodule)
    check_carry(run.model.carried is not None, run.datamodule, run.trainer.world_size)
    check_labels(run.model.loss, run.datamodule)
    run.model.loss.check(run.model.iterations)
    if run.model.capacity is not None:
        run.model.capacity.check(run.model.iterations)
    check_finished(run.model, run.start)


def try_out(run: TrainingCLI) -> None:
    """Run the few batches of fast_dev_run, in which no state of the folder is read and nothing is written."""
    check_together(run)
    run.trainer.fit(run.model, run.datamodule)
    if run.trainer.is_global_zero:
        say(f"tried {run.trainer.global_step} steps and kept nothing; leave --trainer.fast_dev_run out to train")


def identify(run: TrainingCLI) -> Identity:
    """What decides the weights of this run."""
    key = getattr(run.datamodule, "content_key", None)
    start = None if run.start is None else run.start.sha256
    return identity_of(run.resolved, None if key is None else key(), start, run.trainer.world_size)


def go_on(run: TrainingCLI, there: Standing) -> bool:
    """Train from the state that is there, or from the start; return whether the run has come to its end.

    A mistake that shows only with the first batch leaves the folder as it was.
    """
    before = set(run.states.iterdir())
    try:
        write_configuration(run)
        choose_threads(run)
        announce(run, there)
        fit(run, there)
        if (run.states / LAST).exists() and read_state(run.states / LAST)["mull"]["finished"]:
            return True
        if run.trainer.global_step == there.step:
            raise ValueError(
                f"not one step was taken after step {there.step}: trainer.max_time and trainer.limit_train_batches "
                "must leave room for one"
            )
    except Exception:
        if there.state is None and not run.trainer.global_step:
            with suppress(Exception):  # what is told is what went wrong first
                close(run.trainer.loggers)
                for new in set(run.states.iterdir()) - before:
                    shutil.rmtree(new) if new.is_dir() else new.unlink()
        raise
    step = run.trainer.global_step
    say(f"{run.folder} is unfinished: stopped at step {step} of {run.model.total_steps}; the same line goes on")
    return False


def write_configuration(run: TrainingCLI) -> None:
    """Write the resolved configuration beside the trainer's state, for people."""
    replace_all(run.states, {"config.yaml": configuration_text(run).encode()})


def configuration_text(run: TrainingCLI) -> str:
    """The resolved configuration and what else decides the weights, as YAML."""
    more = {name: value for name, value in run.identity.items() if name != "configuration"}
    if run.start is not None:
        more["from_folder"] = str(run.start.folder)
    return yaml.safe_dump({**run.resolved, "identity": more}, sort_keys=False)


def announce(run: TrainingCLI, there: Standing) -> None:
    """Print what is about to be trained, from where, and on what."""
    parameters = sum(p.numel() for p in run.model.network.parameters())
    threads, device = torch.get_num_threads(), run.trainer.strategy.root_device
    new = there.state is None
    if run.trainer.max_steps == -1:
        length = f"{'' if new else f'{there.step} steps of '}{run.trainer.max_epochs} epochs"
    else:
        length = f"{'' if new else f'{there.step} of '}{run.trainer.max_steps} steps"
    start = f" from {run.start.folder}" if new and run.start is not None else ""
    say(
        f"{'training' if new else 'going on with'} {run.folder}{start}: {parameters:,} parameters, "
        f"{length}, {threads} thread{'s' * (threads != 1)}, {device}"
    )


def fit(run: TrainingCLI, there: Standing) -> None:
    """Train from a saved state or from the start, until the last step or until something ends it.

    Raises:
        NonFiniteLossError: see `train`; the message names the last good state.
        SystemExit: a signal has ended the training.
    """
    begin(run.trainer.loggers, there.step, run.resolved, measures(run))
    if isinstance(run.trainer.precision_plugin, DoublePrecision):
        convert(run)  # halves fit into the single precision that they are restored in, where averages of them are kept
    last = run.states / LAST
    run.saving.take_signals()
    try:
        try:
            run.trainer.fit(run.model, run.datamodule, ckpt_path=there.state, weights_only=True)
        finally:
            run.saving.give_signals_back()
        run.saving.leave_if_told()
    except NonFiniteLossError as error:
        kept = f"the last good state stays in {last}" if last.exists() else "no state was saved yet"
        raise NonFiniteLossError(
            f"{error}; {kept}; lower the learning rate or warm up longer, with another --output"
        ) from None
    except Stopped as stopped:
        if run.trainer.is_global_zero:
            say(f"{stopped.name}: {run.folder} stopped, step {stopped.step} is saved; the same line goes on")
        raise


def convert(run: TrainingCLI) -> None:
    """Give the weights the number type of the precision, where that is not of computing alone: 64-true, bf16-true and
    16-true. The trainer does it too, but only after it has restored a state, whose doubles are rounded on their way."""
    plugin = run.trainer.precision_plugin
    if isinstance(plugin, DoublePrecision | HalfPrecision):
        plugin.convert_module(run.model)


def measures(run: TrainingCLI) -> list[str]:
    """The names of what a log shows beside the configuration: the loss of a validation, and the final ones.

    Which difficulties will be measured is not known yet, so there may be names that get no value.
    """
    counts: list[int | None] = [*run.model.validate_at] or [None]
    difficulties = getattr(run.datamodule, "difficulties", [])
    named = [None, *difficulties] if len(difficulties) > 1 else [None]
    return ["val/loss", *(label("loss", count, difficulty) for difficulty in named for count in counts)]


def final_network(run: TrainingCLI) -> nn.Module:
    """The network with the weights of the final state, whole on this device.

    Where a callback averages weights, these are the average, whether or not the run was resumed after its last step;
    but what is frozen is as it was, since an average of equal weights is rounded.
    """
    saved = read_state(run.states / LAST)
    convert(run)
    run.model.freeze_others()  # this process may not have trained
    every, live = run.model.named_parameters(remove_duplicate=False), saved.get("current_model_state", {})
    frozen = {name: live[name] for name, weight in every if not weight.requires_grad and name in live}
    state = {**saved["state_dict"], **frozen}
    if not is_sharded(run.model.network):
        run.model.load_state_dict(state)
        return run.model.network
    known: Any = run.model.network  # of mull, or it would not have been divided
    network: nn.Module = type(known)(known.config).to(known.dtype)
    network.load_state_dict({name.removeprefix("network."): weight for name, weight in state.items()})
    return network
