"""The checkpoint folder: everything inference needs, nothing that runs code, strict on the way in.

    config.json          model_type, every architecture field, mull_version, and the checksums
    model.safetensors    the weights, each tensor once
    tokenizer.json       Hugging Face tokenizers
    training.yaml        the whole resolved training configuration
    depth.json           accuracy or loss by iteration count, with the command that measured it
    depth.png            a picture of it
    README.md            the model card

Saving puts all files in place or none (replacing.py), also where the process is killed. Three checksums in config.json
tell a flipped bit from a value: weights_sha256 and tokenizer_sha256 of those files, and config_sha256 of the other
fields of config.json. Folders of earlier versions have the first only, folders of the public layout none.

Loading compares before it builds: first the size of the weights file with config.json, then its checksum, then its
header with the layers of the model; memory for weights is taken last.
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
from mull.checkpoints.files import (
    AGAIN,
    MAX_TOKENIZER,
    checksum_of,
    damaged,
    file_in_the_way,
    is_there,
    path_of,
    read_bytes,
    read_json,
    read_tokenizer,
    shown,
)
from mull.checkpoints.migrations import upgraded, upgraded_shapes
from mull.checkpoints.names import folder_of
from mull.checkpoints.replacing import complete, replace_all
from mull.checkpoints.tensors import Stored, check_floating_point, read_tensors, stored_in, stream
from mull.models import LanguageModel, ModelConfig
from mull.models.arguments import is_precise
from mull.models.config import too_large
from mull.models.families import FAMILIES, family_of

VERSION = "0.1.0"
CONFIG, WEIGHTS, TOKENIZER, TRAINING, DEPTH, PICTURE, CARD = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "training.yaml",
    "depth.json",
    "depth.png",
    "README.md",
)
CONFIG_SUM, WEIGHTS_SUM, TOKENIZER_SUM = "config_sha256", "weights_sha256", "tokenizer_sha256"
UNREGISTERED = f"import the module of its author that registers it first (--plugin), or {AGAIN}"
MAX_CARD = 1 << 20  # bytes of a card whose words are kept


def save(
    model: LanguageModel,
    path: str | Path,
    tokenizer: Tokenizer | None = None,
    training: str | Mapping[str, Any] | None = None,
    depth: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint folder; an existing one has these files replaced and all others left alone.

    training.yaml, depth.json and depth.png speak of the weights: where they are not given, those of the old weights are
    removed. README.md is written anew, and keeps somebody's own words and the licence of the weights (card.py).

    Args:
        model: any registered family.
        path: the folder; made if need be.
        tokenizer: written as tokenizer.json; None means `model.tokenizer`, and if the model has none either, a
            tokenizer.json that is there stays.
        training: the resolved training configuration, as YAML text or a mapping.
        depth: the table by iteration count (`{"command": ..., "rows": [...]}`).

    Raises:
        ValueError: the model is of no known family, the path is empty or a file, or the tokenizer is of another
            library.
    """
    folder = path_of(path, "the path to save to")
    blocking = file_in_the_way(folder)
    if blocking is not None:
        raise ValueError(f"{blocking} is a file; a checkpoint is a folder, name another path")
    model_type = family_of(model)
    tokenizer = model.tokenizer if tokenizer is None else tokenizer
    if tokenizer is not None and not isinstance(tokenizer, Tokenizer):
        kind = f"{type(tokenizer).__module__}.{type(tokenizer).__name__}"
        raise ValueError(
            f"tokenizer must be a tokenizers.Tokenizer, not {kind}; of transformers, give tokenizer.backend_tokenizer"
        )
    weights = to_safetensors({name: tensor.contiguous() for name, tensor in model.state_dict().items()})
    contents: dict[str, bytes] = {WEIGHTS: weights}
    if tokenizer is not None:
        contents[TOKENIZER] = tokenizer.to_str(pretty=True).encode()
    config = {
        "model_type": model_type,
        "mull_version": VERSION,
        **asdict(model.config),
        WEIGHTS_SUM: hashlib.sha256(weights).hexdigest(),
        TOKENIZER_SUM: tokenizer_sum(folder, contents.get(TOKENIZER)),
    }
    config[CONFIG_SUM] = fields_sum(config)
    if training is not None:
        # JSON is YAML, so a mapping needs no YAML writer here
        contents[TRAINING] = (training if isinstance(training, str) else json.dumps(training, indent=2)).encode()
    if depth is not None:
        contents[DEPTH] = (json.dumps(depth, indent=2) + "\n").encode()
    contents[CARD] = model_card(folder.resolve().name, model.config, depth, before=present_card(folder)).encode()
    contents[CONFIG] = (json.dumps(config, indent=2) + "\n").encode()  # last: it vouches for the weights
    replace_all(folder, contents, removed=[name for name in (TRAINING, DEPTH, PICTURE) if name not in contents])


def present_card(folder: Path) -> str:
    """The model card of a folder, which the next one keeps words of; empty where there is none."""
    return read_bytes(folder / CARD, MAX_CARD).decode(errors="replace") if is_there(folder / CARD) else ""


def tokenizer_sum(folder: Path, written: bytes | None) -> str | None:
    """The checksum of the tokenizer.json that a save writes, or leaves in place; None where there is none."""
    if written is None and is_there(folder / TOKENIZER):
        written = read_bytes(folder / TOKENIZER, MAX_TOKENIZER)
    return None if written is None else hashlib.sha256(written).hexdigest()


def fields_sum(config: Mapping[str, Any]) -> str:
    """The checksum of the fields of config.json, whatever their order and spelling."""
    others = {name: value for name, value in config.items() if name != CONFIG_SUM}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()


def load(
    path: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    *,
    mapped: bool = False,
) -> LanguageModel:
    """Load the model of a checkpoint folder, in eval mode; `model.tokenizer` is the folder's, None if it has none.

    Args:
        path: the folder, or the name of one (names.py); the public recurrent-depth layout (huginn.py) is recognised.
        device: where the weights go.
        dtype: floating-point type of the weights; None keeps the stored one.
        mapped: map the file of the weights instead of reading it, where nothing has to be converted: memory is shared
            between processes, and a file that is changed later takes the process with it. Saving replaces files and
            changes none, so saving over a mapped folder is safe.

    Raises:
        FileNotFoundError: no such folder, or a file is missing in it.
        ValueError: the configuration has an unknown, missing or bad field, the weights are damaged or do not fit, or
            the device or dtype cannot be had.
    """
    place = usable(device)
    if dtype is not None and not is_precise(dtype):
        raise ValueError(f"dtype must be a floating-point type of 16 bits or more, as torch.bfloat16, not {dtype!r}")
    folder = existing(path)
    model, tensors = prepared(folder)
    model.load_state_dict(read_tensors(tensors, place, dtype, mapped), assign=True)
    if is_there(folder / TOKENIZER):
        model.tokenizer = load_tokenizer(folder)
    elif read_fields(folder).get(TOKENIZER_SUM) is not None:
        raise FileNotFoundError(
            f"{folder / TOKENIZER} is missing, and {CONFIG} vouches for it: copy the folder again, or remove "
            f"{TOKENIZER_SUM} and {CONFIG_SUM} from {CONFIG} to use it without text"
        )
    return model.eval()


def verify(path: str | Path) -> tuple[ModelConfig, str]:
    """Read everything that answers come from, keeping nothing; return the configuration and what was found.

    Raises:
        FileNotFoundError, ValueError: as `load` and `load_tokenizer`; and for weights that are not finite.
    """
    folder = existing(path)
    model, tensors = prepared(folder)
    for name, tensor in stream(tensors, reuse=True):
        if not tensor.isfinite().all():
            raise damaged(tensors[name].file, f"is no sound model: {name} has numbers that are not finite")
    said = read_fields(folder)
    sums = {CONFIG: CONFIG_SUM, WEIGHTS: WEIGHTS_SUM, TOKENIZER: TOKENIZER_SUM}
    vouched = [file for file, field in sums.items() if said.get(field) is not None]
    unknown = [file for file in sums if file not in vouched and is_there(folder / file)]
    if is_there(folder / TOKENIZER) or TOKENIZER in vouched:
        load_tokenizer(folder)
    count = sum(tensor.numel() for tensor in model.state_dict().values())
    found = f"{count:,} numbers, complete and finite"
    found += f"; checksums right: {', '.join(vouched)}" if vouched else ""
    found += f"; without a checksum: {', '.join(unknown)}" if unknown else ""
    return model.config, found


def existing(path: str | Path) -> Path:
    """The folder of a checkpoint, a killed save of it ended first; raises if there is none."""
    folder = folder_of(path)
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file; give the checkpoint folder that it lies in")
    complete(folder)
    if not is_there(folder / CONFIG) and (folder / "trainer").is_dir():
        raise FileNotFoundError(
            f"{folder} holds a training and no model: it has not come to its end, and the line that began it goes on, "
            "or its network is of no registered family"
        )
    return folder


def prepared(folder: Path) -> tuple[LanguageModel, dict[str, Stored]]:
    """The model of a folder without its numbers, and where they lie; everything has been checked but the numbers."""
    config, checksum = read_config(folder)
    if checksum is None:
        tensors = huginn.stored_tensors(folder, config)  # type: ignore[arg-type]  # its read_config made it
    else:
        tensors = stored_tensors(folder / WEIGHTS, checksum, config)
    check_floating_point(tensors)
    check_size(config, tensors, folder)
    try:
        with torch.device("meta"), Shapes(64 * (len(tensors) + 16)):
            model = FAMILIES[config.model_type](config)
    except (RuntimeError, TypeError, OverflowError, MemoryError) as error:  # sizes beyond what torch can address
        raise damaged(folder / CONFIG, f"describes no possible model: {error}") from error
    check_fit(model, tensors, folder)
    return model, tensors


def check_size(config: ModelConfig, tensors: Mapping[str, Stored], folder: Path) -> None:
    """Raise a ValueError if the configuration asks for far more numbers than are stored; `check_fit` is exact."""
    asked = config.parameters
    there = sum(tensor.size for tensor in tensors.values()) // 2  # a number has two bytes at least
    if asked > 2 * there + 1_000_000:
        raise damaged(
            folder / CONFIG, f"describes no possible model: {asked:.4g} parameters, and at most {there:.4g} are stored"
        )


class Shapes(TorchFunctionMode):
    """While active, builds models without memory (with torch.device("meta")), and raises after `calls` torch calls.

    `init.normal_` is left out: without memory to fill it does nothing, yet torch would import its compiler (2 s).

    Args:
        calls: the most torch calls that building may take.
    """

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.calls = calls

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls -= 1
        if self.calls < 0:
            raise RuntimeError("it has many more layers than there are weights")
        return kwargs["tensor"] if func is torch.nn.init.normal_ else func(*args, **(kwargs or {}))


def usable(device: str | torch.device) -> torch.device:
    """The device of that name, with its index. Raises ValueError where tensors cannot be made or hold no numbers
    there."""
    try:
        found = torch.empty(0, device=device)
        if found.is_meta:
            raise RuntimeError("it holds no numbers")
        return found.device
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {str(device)!r} cannot be used here ({reason}); pass 'cpu' or another") from error


def read_fields(folder: Path) -> dict[str, Any]:
    """What config.json says, its checksum verified where it has one."""
    found = read_json(folder / CONFIG)
    check_fields_sum(found, folder)
    return found


def check_fields_sum(found: Mapping[str, Any], folder: Path) -> None:
    """Raise a ValueError if the fields of config.json do not have the checksum that it names."""
    checksum = found.get(CONFIG_SUM)
    if CONFIG_SUM in found and checksum != fields_sum(found):
        raise damaged(
            folder / CONFIG,
            f"is damaged: its fields do not have the checksum that it names, {CONFIG_SUM} {shown(checksum, 16)}",
            f"copy the folder again; if you changed a field on purpose, remove {CONFIG_SUM}",
        )


def read_config(folder: Path) -> tuple[ModelConfig, str | None]:
    """The configuration of a folder, and the checksum of its weights; None in the public layout, which has none."""
    complete(folder)
    said = read_json(folder / CONFIG)
    found = dict(said)
    check_limits(found, folder)
    if huginn.is_huginn(found):
        return huginn.read_config(folder), None
    model_type = found.pop("model_type", None)
    wrong = FAMILIES.wrong(model_type)
    if wrong:
        raise damaged(folder / CONFIG, f"model_type {wrong}", UNREGISTERED)
    config_class = FAMILIES[model_type].config_class
    found = upgraded(model_type, found)
    known = {f.name for f in fields(config_class)}
    checksum = found.pop(WEIGHTS_SUM, None)
    missing = sorted(known - set(found)) + ([] if isinstance(checksum, str) else [WEIGHTS_SUM])
    unknown = sorted(set(found) - known - {"mull_version", TOKENIZER_SUM, CONFIG_SUM})
    for kind, names, remedy in (
        ("lacks", missing, "save the model again with mull.save"),
        ("has unknown", unknown, "remove it, or load it with the mull version that wrote it"),
    ):
        if names:
            raise damaged(folder / CONFIG, f"{kind} {', '.join(names)} (a {model_type} configuration)", remedy)
    if not isinstance(found["stop_tokens"], list):
        raise damaged(folder / CONFIG, f"stop_tokens must be a list of token ids, not {found['stop_tokens']!r}")
    try:
        config = config_class(**{name: found[name] for name in known})
    except (ValueError, TypeError, OverflowError) as error:
        words = config_class.choices.items()
        foreign = any(registry.wrong(found[field]) for field, registry in words)
        raise damaged(folder / CONFIG, str(error), UNREGISTERED if foreign else AGAIN) from error
    check_fields_sum(said, folder)  # last, since a field that is wrong by itself is named
    return config, checksum


def check_limits(found: Mapping[str, Any], folder: Path) -> None:
    """Raise a ValueError for a size in config.json that no model has, before anything is made of that size."""
    large = too_large(found)
    if large:
        raise damaged(folder / CONFIG, f"describes no possible model: {large[0]}")


def stored_tensors(path: Path, checksum: str, config: ModelConfig) -> dict[str, Stored]:
    """The tensors of model.safetensors, the checksum of the file verified."""
    if not is_there(path):
        remedy = huginn.instead(path)
        raise FileNotFoundError(f"{path.parent} is no checkpoint folder: {path.name} is missing; {remedy}")
    size = 0 if not path.is_file() else path.stat().st_size
    limit = 16 * config.parameters + 64_000_000  # twice what the widest numbers take, and a long header
    if size > limit:
        raise damaged(path, f"has {size:,} bytes, many more than the {config.parameters:,} parameters of {CONFIG} take")
    if checksum_of(path) != checksum:
        raise damaged(path, f"is damaged: its checksum is not the one in {CONFIG}")
    return stored_in(path)


def check_fit(model: LanguageModel, tensors: Mapping[str, Stored], folder: Path) -> None:
    """Every tensor of the model is there in its shape, and no other."""
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = upgraded_shapes({name: tensor.shape for name, tensor in tensors.items()}, wanted)
    wrong = sorted(set(wanted.items()) ^ set(found.items()))
    if wrong:
        name = wrong[0][0]
        file = tensors[name].file if name in tensors else huginn.weights_file(folder)
        raise damaged(
            file,
            f"does not fit {CONFIG}: {shown(name)} has shape {found.get(name, 'none')} "
            f"and {wanted.get(name, 'none')} is expected ({len(dict(wrong))} of {len(wanted)} tensors differ)",
        )


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a checkpoint folder, its checksum verified where config.json has one.

    It comes without truncation and padding: a limit stored with it would silently cut prompts.
    """
    folder = existing(path)
    if not is_there(folder / TOKENIZER):
        raise FileNotFoundError(
            f"{folder / TOKENIZER} is missing; save the model again with mull.save(..., tokenizer=...)"
        )
    checksum = read_fields(folder).get(TOKENIZER_SUM) if is_there(folder / CONFIG) else None
    return read_tokenizer(folder / TOKENIZER, None if checksum is None else str(checksum))
