"""The data that a checkpoint was trained for, rebuilt from its training.yaml, to measure it on what it never saw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from jsonargparse import ArgumentParser

from mull.checkpoints.files import read_yaml
from mull.checkpoints.store import TRAINING


def data_of(folder: str | Path, paths: list[str] | None = None) -> Any:
    """The data module of a checkpoint folder.

    Args:
        folder: a checkpoint folder that was trained here.
        paths: text files or folders that replace the run's own, measured whole.

    Raises:
        FileNotFoundError: the folder says nothing of its training.
        ValueError: its data module is unknown, or has no evaluation batches.
    """
    file = Path(folder) / TRAINING
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing, so the data to evaluate on is unknown; evaluate from Python")
    description = read_yaml(file).get("data")
    if not isinstance(description, dict):
        raise ValueError(f"{file} names no data module, so the data to evaluate on is unknown; evaluate from Python")
    if paths is not None:
        arguments = description.setdefault("init_args", {})
        if "paths" not in arguments:
            raise ValueError(f"{folder} was not trained on text: leave --paths out")
        arguments |= {"paths": paths, "held_out": 1.0}  # none of it was trained on: measure on all
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(pl.LightningDataModule, "data")
    data = parser.instantiate(parser.parse_object({"data": description})).data
    if not hasattr(data, "evaluation_batches"):
        raise ValueError(f"{type(data).__name__} offers no evaluation_batches; evaluate from Python")
    return data
