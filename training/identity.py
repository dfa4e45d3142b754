"""Whether a folder holds the very run that a configuration describes: finished, to be resumed, or another one."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from mull.checkpoints.files import read_yaml
from mull.checkpoints.store import CONFIG, TRAINING

# The settings of the trainer that decide what the weights become. All others only decide what a user sees of the run.
DECIDES = (
    "max_steps",
    "max_epochs",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "precision",
    "callbacks",
    "devices",
    "num_nodes",
    "limit_train_batches",
)


def is_finished(folder: Path, resolved: dict[str, Any]) -> bool:
    """Whether the folder holds this very run, finished; False if it is empty or holds this run unfinished.

    Args:
        folder: folder of the run; it need not exist.
        resolved: the resolved configuration, as `TrainingCLI.resolved`.

    Raises:
        ValueError: the folder is a file, or holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; name a folder with --output")
    remedy = "pass another --output, or remove the folder"
    started = (folder / "trainer" / "last.ckpt").exists()  # a run that saved no state may be replaced: nothing is lost
    for path, finished in ((folder / TRAINING, True), (folder / "trainer" / "config.yaml", False)):
        if path.exists() and (finished or started):
            different = differences(decisive(read_yaml(path)), decisive(resolved))
            if different:
                raise ValueError(f"{folder} holds a run of another configuration ({different[0]}); {remedy}")
            return finished
    if (folder / CONFIG).exists():
        raise ValueError(f"{folder} holds a checkpoint whose training is unknown; {remedy}")
    return False


def decisive(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a resolved configuration that decides what the weights become."""
    trainer = {name: config.get("trainer", {}).get(name) for name in DECIDES}
    return {name: config.get(name) for name in ("seed_everything", "model", "data")} | {"trainer": trainer}


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """The fields in which two nested configurations differ, as `field: old, now new`; `path` is where both stand."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = list(one) + [key for key in other if key not in one]
        return [d for key in keys for d in differences(one.get(key), other.get(key), f"{path}.{key}".strip("."))]
    return [] if one == other else [f"{path}: {one}, now {other}"]


def resumable_state(last: Path) -> Path | None:
    """The file of the trainer's state, checked; None if the run has not saved one yet.

    Raises:
        ValueError: the file cannot be read.
    """
    if not last.exists():
        return None
    try:
        torch.load(last, weights_only=True, mmap=True, map_location="cpu")
    except (RuntimeError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{last} is damaged ({reason}); remove {last.parent} to train anew") from error
    return last
