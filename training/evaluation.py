"""The data that a checkpoint is measured on: that of its training, rebuilt from its training.yaml, or the user's texts.

The folder is enough, and is not trusted: classes come from a closed list (description.py), the tokenizer is the
tokenizer.json in the folder whatever training.yaml says, and a corpus is cached where this process keeps its own. Paths
of texts come from the user; those that training.yaml names are read after an explicit word only (`--trust`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mull.checkpoints.files import damaged, is_there, read_yaml, shown
from mull.checkpoints.names import folder_of
from mull.checkpoints.plugins import import_plugins
from mull.checkpoints.store import TOKENIZER, TRAINING, load_tokenizer, read_config
from mull.training.data.tokenizer import byte_tokenizer, vocab_size_of
from mull.training.description import build

TEXT = "mull.training.data.TextData"
WINDOW = 256  # positions, for a folder that does not say how it was trained


def data_of(
    folder: str | Path, paths: list[str] | None = None, plugins: Sequence[str] = (), trust: bool = False
) -> Any:
    """The data module of a checkpoint folder.

    Args:
        folder: a checkpoint folder; without a training.yaml it is measured on `paths`.
        paths: text files or folders that replace the run's own, measured whole.
        plugins: modules whose classes may be instantiated where the folder names them, beside mull's own.
        trust: the paths that training.yaml names may be read.

    Raises:
        FileNotFoundError: the folder says nothing of its training, and no paths are given.
        ValueError: its data module is unknown, is not trusted, or has no evaluation batches.
    """
    import_plugins(plugins)
    folder = folder_of(folder)
    file = folder / TRAINING
    description = described(folder, paths)
    arguments = description.get("init_args") or {}
    if not isinstance(arguments, dict):
        raise damaged(file, "must hold a mapping under data.init_args")
    if paths is not None and "paths" not in arguments:
        raise ValueError(f"{folder} was not trained on text: leave --paths out")
    if "paths" in arguments:
        arguments = asked_for(folder, arguments, paths, trust)
        if "tokenizer" in arguments or str(description["class_path"]).startswith("mull."):  # not all others have one
            arguments["tokenizer"] = own_tokenizer(folder, arguments.get("tokenizer"))
    import lightning.pytorch as pl  # takes seconds, which those who ask for help, or are refused, need not wait for

    try:
        data = build({**description, "init_args": arguments}, pl.LightningDataModule)
    except ValueError as error:
        raise damaged(file, str(error), "evaluate from Python, or with what it names") from error
    if not hasattr(data, "evaluation_batches"):
        raise ValueError(f"{type(data).__name__} offers no evaluation_batches; evaluate from Python")
    return data


def described(folder: Path, paths: list[str] | None) -> dict[str, Any]:
    """What training.yaml says of the data; for a folder without one, text in windows that the model can take."""
    file = folder / TRAINING
    if not is_there(file):
        if paths is None:
            raise FileNotFoundError(f"{file} is missing, so the data to evaluate on is unknown; name text with --paths")
        return {
            "class_path": TEXT,
            "init_args": {"paths": paths, "length": min(WINDOW, read_config(folder)[0].max_length)},
        }
    description = read_yaml(file).get("data")
    if not isinstance(description, dict) or "class_path" not in description:
        raise damaged(file, "names no data module, so the data to evaluate on is unknown", "evaluate from Python")
    return description


def asks_texts(folder: str | Path) -> bool:
    """Whether the training.yaml of a folder says that the model was trained on text files."""
    arguments = described(folder_of(folder), None).get("init_args")
    return isinstance(arguments, dict) and "paths" in arguments


def asked_for(folder: Path, arguments: dict[str, Any], paths: list[str] | None, trust: bool) -> dict[str, Any]:
    """The arguments of a data module of texts, with no place in them that the user has not asked for."""
    if paths is None and not trust:
        raise ValueError(
            f"{folder / TRAINING} names texts of its own, {shown(arguments['paths'])}: measure on texts of yours with "
            "--paths, or let it read those with --trust"
        )
    if paths is not None:
        arguments = {**arguments, "paths": paths, "held_out": 1.0}  # none of it was trained on: measure on all
    return {name: value for name, value in arguments.items() if name != "cache"}


def own_tokenizer(folder: Path, trained_with: Any) -> str | None:
    """The path of the folder's tokenizer.json; None for bytes, which a folder without one was trained on.

    Args:
        folder: the checkpoint folder.
        trained_with: the tokenizer that training.yaml names, of which only matters whether there is one.

    Raises:
        FileNotFoundError, ValueError: it is missing or damaged, or has more tokens than the model.
    """
    if is_there(folder / TOKENIZER) or trained_with is not None:
        tokenizer, path = load_tokenizer(folder), str(folder / TOKENIZER)
    else:
        tokenizer, path = byte_tokenizer(), None
    there, known = vocab_size_of(tokenizer), read_config(folder)[0].vocab_size
    if there > known:
        own = f"{path} has" if path else f"{folder} has no {TOKENIZER}, and bytes have"
        raise ValueError(f"{own} {there} tokens, more than the {known} of the model; put its own {TOKENIZER} there")
    return path
