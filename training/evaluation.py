"""The data that a checkpoint was trained for, rebuilt from its training.yaml, to measure it on what it never saw."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from mull.checkpoints.files import read_yaml
from mull.checkpoints.plugins import import_plugins
from mull.checkpoints.store import TRAINING
from mull.training.description import build


def data_of(folder: str | Path, paths: list[str] | None = None, plugins: Sequence[str] = ()) -> Any:
    """The data module of a checkpoint folder.

    Args:
        folder: a checkpoint folder that was trained here.
        paths: text files or folders that replace the run's own, measured whole.
        plugins: modules whose classes may be instantiated where the folder names them, beside mull's own.

    Raises:
        FileNotFoundError: the folder says nothing of its training.
        ValueError: its data module is unknown, is not trusted, or has no evaluation batches.
    """
    import_plugins(plugins)
    file = Path(folder) / TRAINING
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing, so the data to evaluate on is unknown; evaluate from Python")
    description = read_yaml(file).get("data")
    if not isinstance(description, dict) or "class_path" not in description:
        raise ValueError(f"{file} names no data module, so the data to evaluate on is unknown; evaluate from Python")
    if paths is not None:
        arguments = description.get("init_args") or {}
        if "paths" not in arguments:
            raise ValueError(f"{folder} was not trained on text: leave --paths out")
        arguments |= {"paths": paths, "held_out": 1.0}  # none of it was trained on: measure on all
    try:
        data = build(description, pl.LightningDataModule)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    if not hasattr(data, "evaluation_batches"):
        raise ValueError(f"{type(data).__name__} offers no evaluation_batches; evaluate from Python")
    return data
