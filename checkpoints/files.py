"""Files of a checkpoint, read with errors that name them.

Nothing here knows what a model is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

AGAIN = "copy the folder again from its source, or save the model again with mull.save"


def read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path.parent} is no checkpoint folder: {path.name} is missing; {AGAIN}") from None
    except (ValueError, RecursionError) as error:  # JSON and UTF-8 errors are ValueErrors; endless nesting is not
        raise ValueError(f"{path} cannot be read as JSON: {error}; {AGAIN}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold one JSON object; {AGAIN}")
    return found


def read_yaml(path: Path) -> dict[str, Any]:
    import yaml  # only those who ask about a training pay for it

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read as YAML: {error}; {AGAIN}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold one YAML mapping; {AGAIN}")
    return found


def read_tensors(path: Path, device: torch.device, dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file: the file itself, mapped, where nothing has to be converted.

    What is converted is mapped tensor by tensor, since pages once read stay in memory as long as their mapping: at most
    the result and one stored tensor are there at once.
    """
    tensors = {}
    try:
        with safe_open(path, framework="pt") as stored:
            names = list(stored.keys())
            kept = {name: stored.get_tensor(name) for name in names}
        kinds = {name: dtype if tensor.is_floating_point() and dtype else tensor.dtype for name, tensor in kept.items()}
        if device.type == "cpu" and all(kept[name].dtype == kinds[name] for name in names):
            return kept
        del kept
        for name in names:
            with safe_open(path, framework="pt") as stored:
                tensors[name] = stored.get_tensor(name).to(device, kinds[name])
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file: {error}; {AGAIN}") from error
    return tensors
