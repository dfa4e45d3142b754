"""The checkpoint folder: everything inference needs, nothing that runs code, strict on the way in.

    config.json          model_type, every architecture field, mull_version, weights_sha256
    model.safetensors    the weights, each tensor once
    tokenizer.json       Hugging Face tokenizers
    training.yaml        the whole resolved training configuration
    depth.json           accuracy or loss by iteration count, with the command that measured it
    README.md            the model card

Saving writes every file beside its place, only then renames, and takes the renames back if one fails: an error or a
full disk leaves what was there. The checksum in config.json is what tells a flipped bit from a weight, since
safetensors has none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from tokenizers import Tokenizer
from torch.overrides import TorchFunctionMode

from mull.checkpoints import huginn
from mull.checkpoints.card import model_card
from mull.checkpoints.files import AGAIN, read_json, read_tensors, replace_all
from mull.checkpoints.migrations import upgraded
from mull.models import LanguageModel, ModelConfig
from mull.models.families import FAMILIES, family_of

VERSION = "0.1.0"
CONFIG, WEIGHTS, TOKENIZER, TRAINING, DEPTH, CARD = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "training.yaml",
    "depth.json",
    "README.md",
)


def save(
    model: LanguageModel,
    path: str | Path,
    tokenizer: Tokenizer | None = None,
    training: str | Mapping[str, Any] | None = None,
    depth: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint folder; an existing one has these files replaced and all others left alone.

    training.yaml and depth.json speak of the weights: where they are not given, those of the old weights are removed.

    Args:
        model: any registered family.
        path: the folder; made if need be.
        tokenizer: written as tokenizer.json; None leaves the one that is there.
        training: the resolved training configuration, as YAML text or a mapping.
        depth: the table by iteration count (`{"command": ..., "rows": [...]}`).

    Raises:
        ValueError: the model is of no known family, or the path is a file.
    """
    folder = Path(path)
    blocking = [place for place in (folder, *folder.parents) if place.exists() and not place.is_dir()]
    if blocking:
        raise ValueError(f"{blocking[0]} is a file; a checkpoint is a folder, name another path")
    weights = to_safetensors({name: tensor.contiguous() for name, tensor in model.state_dict().items()})
    config = {
        "model_type": family_of(model),
        "mull_version": VERSION,
        **asdict(model.config),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }
    contents: dict[str, bytes] = {WEIGHTS: weights}
    if tokenizer is not None:
        contents[TOKENIZER] = tokenizer.to_str(pretty=True).encode()
    if training is not None:
        # JSON is YAML, so a mapping needs no YAML writer here
        contents[TRAINING] = (training if isinstance(training, str) else json.dumps(training, indent=2)).encode()
    if depth is not None:
        contents[DEPTH] = (json.dumps(depth, indent=2) + "\n").encode()
    contents[CARD] = model_card(folder.resolve().name, model.config, depth).encode()
    contents[CONFIG] = (json.dumps(config, indent=2) + "\n").encode()  # last: it vouches for the weights
    replace_all(folder, contents, removed=[name for name in (TRAINING, DEPTH) if name not in contents])


def load(path: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> LanguageModel:
    """Load the model of a checkpoint folder, in eval mode; `model.tokenizer` is the folder's, None if it has none.

    Args:
        path: the folder; one in the public recurrent-depth layout (huginn.py) is recognised.
        device: where the weights go.
        dtype: floating-point type of the weights; None keeps the stored one, and maps the file instead of copying it.

    Raises:
        FileNotFoundError: no such folder, or a file is missing in it.
        ValueError: the configuration has an unknown, missing or bad field, the weights are damaged or do not fit, or
            the device or dtype cannot be had.
    """
    folder, place = Path(path), usable(device)
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"dtype must be a floating-point type such as torch.bfloat16, not {dtype!r}")
    if folder.is_file():
        raise ValueError(f"{folder} is a file; give the checkpoint folder that it lies in")
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no checkpoint folder {folder}; `mull train` makes one")
    config, checksum = read_config(folder)
    if checksum is None:
        weights = huginn.read_weights(folder, config, place, dtype)  # type: ignore[arg-type]  # its read_config made it
    else:
        weights = read_weights(folder / WEIGHTS, checksum, place, dtype)
    try:
        with torch.device("meta"), WithoutDraws():  # shapes without memory: the weights are handed over, never copied
            model = FAMILIES[config.model_type](config)
    except RuntimeError as error:  # sizes beyond what torch can address
        raise ValueError(f"{folder / CONFIG} describes no possible model: {error}; {AGAIN}") from error
    check_fit(model, weights, folder)
    model.load_state_dict(weights, assign=True)
    if (folder / TOKENIZER).is_file():
        model.tokenizer = load_tokenizer(folder)
    return model.eval()


class WithoutDraws(TorchFunctionMode):
    """Leaves `init.normal_` out: without memory to fill it does nothing, yet torch would import its compiler (2 s)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return kwargs["tensor"] if func is torch.nn.init.normal_ else func(*args, **(kwargs or {}))


def usable(device: str | torch.device) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {str(device)!r} cannot be used here ({reason}); pass 'cpu' or another") from error


def read_config(folder: Path) -> tuple[ModelConfig, str | None]:
    """The configuration of a folder, and the checksum of its weights; None in the public layout, which has none."""
    found = read_json(folder / CONFIG)
    if huginn.is_huginn(found):
        return huginn.read_config(folder), None
    model_type = found.pop("model_type", None)
    wrong = FAMILIES.wrong(model_type)
    if wrong:
        raise ValueError(
            f"{folder / CONFIG}: model_type {wrong}; import the module that registers it first (--plugin), or {AGAIN}"
        )
    config_class = FAMILIES[model_type].config_class
    found = upgraded(model_type, found)
    known = {f.name for f in fields(config_class)}
    checksum = found.pop("weights_sha256", None)
    missing = sorted(known - set(found)) + ([] if isinstance(checksum, str) else ["weights_sha256"])
    unknown = sorted(set(found) - known - {"mull_version"})
    for kind, names, remedy in (
        ("lacks", missing, "save the model again with mull.save"),
        ("has unknown", unknown, "remove it, or load it with the mull version that wrote it"),
    ):
        if names:
            raise ValueError(f"{folder / CONFIG} {kind} {', '.join(names)} (a {model_type} configuration); {remedy}")
    found.pop("mull_version", None)
    if not isinstance(found["stop_tokens"], list):
        raise ValueError(f"{folder / CONFIG}: stop_tokens must be a list of token ids, not {found['stop_tokens']!r}")
    try:
        return config_class(**{**found, "stop_tokens": tuple(found["stop_tokens"])}), checksum
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder / CONFIG}: {error}; {AGAIN}") from error


def read_weights(path: Path, checksum: str, device: torch.device, dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file, one at a time, so that memory stays near the size of the weights."""
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} is no checkpoint folder: {path.name} is missing; {AGAIN}")
    with open(path, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != checksum:
            raise ValueError(f"{path} is damaged: its checksum is not the one in {CONFIG}; {AGAIN}")
    return read_tensors(path, device, dtype)


def check_fit(model: LanguageModel, weights: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Every tensor of the model is there in its shape, and no other; weights are floating-point numbers."""
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    wrong = sorted(set(wanted.items()) ^ set(found.items()))
    if wrong:
        name = wrong[0][0]
        raise ValueError(
            f"{folder / WEIGHTS} does not fit {CONFIG}: {name} has shape {found.get(name, 'none')} "
            f"and {wanted.get(name, 'none')} is expected ({len(dict(wrong))} of {len(wanted)} tensors differ); {AGAIN}"
        )
    for name, tensor in weights.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{folder / WEIGHTS}: {name} is of {tensor.dtype}, not floating-point; {AGAIN}")


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a checkpoint folder, without truncation and padding: a limit stored with it would silently cut
    prompts."""
    file = Path(path) / TOKENIZER
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; save the model again with mull.save(..., tokenizer=...)")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises bare Exception
        raise ValueError(f"{file} is no tokenizer: {error}; {AGAIN}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
