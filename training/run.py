"""One training run, first line to last: read the configuration, go on where the folder left off, fit, save, measure.

FOLDER/                 the checkpoint folder (see checkpoints/store.py), written when training ends
FOLDER/trainer/         config.yaml, last.ckpt (everything needed to resume), threads.txt, logs/
"""

from __future__ import annotations

import shlex
from pathlib import Path

import torch
import yaml

from mull.checkpoints.files import replace_all
from mull.training.cli import TrainingCLI, quiet, read_configuration
from mull.training.export import export, measure
from mull.training.identity import is_finished, resumable_state
from mull.training.module import NonFiniteLossError
from mull.training.threads import choose_threads


def train(args: list[str]) -> Path:
    """Run `mull train ARGS`; return the folder of the finished run.

    Raises:
        ValueError: the folder holds another run, or the configuration is wrong.
        NonFiniteLossError: the loss or its gradient is no longer a number; the last good state stays in the folder.
    """
    quiet()
    run = read_configuration(args)
    if is_finished(run.folder, run.resolved):
        print(f"{run.folder} holds the finished run of this configuration; pass --output to train it anew")
    else:
        run.datamodule.prepare_data()  # before anything is written: text that cannot be read is the user's to mend
        state = resumable_state(run.last)
        write_configuration(run)
        choose_threads(run)
        announce(run, resumed=state is not None)
        fit(run, state)
        if run.trainer.is_global_zero:
            restore_final_weights(run)
            export(run.model.network, run.datamodule, run.folder, configuration_text(run))
    if run.trainer.is_global_zero:
        measure(run.folder, run.datamodule, run.model.validate_at or None, shlex.join(["mull", "train", *args]))
    return run.folder


def write_configuration(run: TrainingCLI) -> None:
    """Write the resolved configuration beside the trainer's state, where `is_finished` finds it."""
    replace_all(run.last.parent, {"config.yaml": configuration_text(run).encode()})


def configuration_text(run: TrainingCLI) -> str:
    """The resolved configuration as YAML."""
    return yaml.safe_dump(run.resolved, sort_keys=False)


def announce(run: TrainingCLI, resumed: bool) -> None:
    """Print what is about to be trained, and on what."""
    parameters = sum(p.numel() for p in run.model.network.parameters())
    print(
        f"{'going on with' if resumed else 'training'} {run.folder}: {parameters:,} parameters, "
        f"{run.trainer.max_steps} steps, {torch.get_num_threads()} threads, {run.trainer.strategy.root_device}"
    )


def fit(run: TrainingCLI, state: Path | None) -> None:
    """Train to the last step, from a saved state or from the start, and save the final state.

    Raises:
        NonFiniteLossError: see `train`; the message names the last good state.
    """
    try:
        run.trainer.fit(run.model, run.datamodule, ckpt_path=state, weights_only=True)
    except NonFiniteLossError as error:
        kept = f"the last good state stays in {run.last}" if run.last.exists() else "no state was saved yet"
        raise NonFiniteLossError(
            f"{error}; {kept}; lower the learning rate or warm up longer, with another --output"
        ) from None
    run.trainer.save_checkpoint(run.last, weights_only=False)  # the optimizer too, not the weights alone


def restore_final_weights(run: TrainingCLI) -> None:
    """Give the network the weights of the final state.

    Where a callback averages weights, these are the average, whether or not the run was resumed after its last step.
    """
    run.model.load_state_dict(torch.load(run.last, weights_only=True, map_location="cpu")["state_dict"])
