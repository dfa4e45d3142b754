"""Opening and writing folders from transformers: mull's store does both, with the strictness it has everywhere."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor

from mull.checkpoints import store
from mull.checkpoints.files import is_there, read_bytes, read_json
from mull.inference.hugging_face.configuration import number_type
from mull.inference.hugging_face.folders import HUB, folder_of, in_one_line
from mull.models import LanguageModel

if TYPE_CHECKING:
    from mull.inference.hugging_face.model import MullForCausalLM

GENERATION = "generation_config.json"
MAX_TRAINING = 1 << 20  # bytes of a training.yaml that is carried over
NOTHING_TO_DO = (  # how transformers would find or read files, which the store does its own way
    "trust_remote_code", "code_revision", "low_cpu_mem_usage", "use_safetensors", "weights_only", "adapter_kwargs",
    "adapter_name", "disable_mmap", "tqdm_class", "max_memory", "attn_implementation",
)  # fmt: skip
WRITTEN_OTHERWISE = (  # how transformers would write files, which the store does its own way: one file of safetensors
    "max_shard_size", "safe_serialization", "token", "save_peft_format", "save_original_format", "save_function",
)  # fmt: skip


def open_folder(
    kind: type[MullForCausalLM],
    name: Any,
    *,
    config: Any = None,
    dtype: Any = None,
    torch_dtype: Any = None,
    device_map: Any = None,
    generation_config: Any = None,
    output_loading_info: bool = False,
    subfolder: str = "",
    **others: Any,
) -> Any:
    """The model of a folder, in eval mode.

    Args:
        kind: the class of its family.
        name: the folder, or a name on the hub.
        config: fields that differ from the folder's, where the weights fit them; None is the folder's.
        dtype, torch_dtype: of the weights, as a type or its name; None and auto keep the stored one.
        device_map: one device for all of it.
        generation_config: what `generate` starts from; None is the folder's generation_config.json, or else its stop
            tokens.
        output_loading_info: return the model and what a loader of transformers reports.
        others: of transformers' own loader; those that say where files are found are followed.

    Raises:
        FolderError: what mull.load refuses.
        ValueError: an argument that cannot be followed, or a config that the weights do not fit.
    """
    hub = {word: others.pop(word) for word in HUB if word in others}
    implementation = others.get("attn_implementation")
    if implementation not in (None, "sdpa"):
        raise ValueError(f"attn_implementation {implementation!r} is refused: mull's layers use sdpa")
    for word, value in others.items():
        if value is not None and not word.startswith("_") and word not in NOTHING_TO_DO:
            raise ValueError(f"{word} is refused: a mull folder is opened by mull's own store; leave it out")
    device, kept = one_device(device_map), number_type(torch_dtype if dtype is None else dtype)
    folder = folder_of(name, subfolder, **hub)
    with in_one_line():
        network = store.load(folder, device, kept)
    if type(network) is not kind.config_class.family:
        raise ValueError(f"{folder} holds a {network.config.model_type}; open it with AutoModelForCausalLM")
    if config is None:
        config = kind.config_class.of(network.config)
    network = as_configured(network, config)
    config.dtype, config.name_or_path = network.dtype, str(name)
    model = kind(config, network=network).eval()
    model.source = folder
    if generation_config is not None:
        model.generation_config = generation_config
    elif is_there(folder / GENERATION):
        model.generation_config = type(model.generation_config).from_dict(read_json(folder / GENERATION))
    adapter = (others.get("adapter_kwargs") or {}).get("_adapter_model_path")
    if adapter is not None:  # transformers was given the folder of an adapter, which names this one
        model.load_adapter(adapter, others.get("adapter_name") or "default")
    report: dict[str, Any] = {
        "missing_keys": set(),
        "unexpected_keys": set(),
        "mismatched_keys": set(),
        "error_msgs": [],
    }
    return (model, report) if output_loading_info else model


def as_configured(network: LanguageModel, config: Any) -> LanguageModel:
    """The model of a folder under a configuration whose fields may differ from the folder's."""
    architecture = config.architecture()
    if architecture == network.config:
        return network
    with torch.device("meta"):
        changed = type(network)(architecture)
    try:
        changed.load_state_dict(network.state_dict(), assign=True)
    except RuntimeError as error:
        raise ValueError(f"the weights do not fit the config: {' '.join(str(error).split())[:200]}") from None
    changed.tokenizer = network.tokenizer
    return changed.eval()


def one_device(device_map: Any) -> Any:
    """The device that a device_map means. Raises ValueError where it means several."""
    if isinstance(device_map, Mapping):
        devices = set(device_map.values())
        if len(devices) != 1:
            raise ValueError(f"device_map names {len(devices)} devices: a mull model lies on one, such as 'cpu'")
        device_map = devices.pop()
    if device_map == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return "cpu" if device_map is None else torch.device(device_map)


def save_folder(
    model: MullForCausalLM,
    save_directory: Any,
    *,
    is_main_process: bool = True,
    state_dict: Mapping[str, Tensor] | None = None,
    push_to_hub: bool = False,
    **others: Any,
) -> None:
    """Write the folder that mull.save writes, and generation_config.json.

    training.yaml and depth.json speak of the weights: they come with them where these are still those of the folder
    that the model was opened from.

    Args:
        model: any; adapters must be merged before.
        save_directory: the folder; made if need be.
        is_main_process: only this one writes.
        state_dict: weights to write in place of the model's own.
        push_to_hub: refused.
        others: how transformers would write files (`WRITTEN_OTHERWISE`), which mull's store does its own way.

    Raises:
        ValueError: there are adapters, the hub is asked for, or something else that cannot be followed.
    """
    for word, value in others.items():
        if value is not None and not word.startswith("_") and word not in WRITTEN_OTHERWISE:
            raise ValueError(f"{word} is refused: a mull folder is written by mull's own store; leave it out")
    if others.get("safe_serialization") is False:
        raise ValueError("safe_serialization=False is refused: weights are never written as a pickle; leave it out")
    if push_to_hub:
        raise ValueError("push_to_hub is refused: save the folder, and upload it with the tools of the hub")
    if not is_main_process:
        return
    with torch.device("meta"):
        network = type(model.mull)(model.mull.config)
    weights = dict(model.mull.state_dict() if state_dict is None else state_dict)
    wrong = sorted({*weights} ^ {*network.state_dict()})
    if wrong:
        raise ValueError(
            f"{wrong[0]} is no tensor of a {type(network).__name__} ({len(wrong)} such names): merge adapters first "
            "(merge_and_unload), or save them alone with the PEFT model's save_pretrained"
        )
    network.load_state_dict(weights, assign=True)
    network.tokenizer = model.mull.tokenizer
    model.generation_config.validate(strict=True)  # before anything is written
    store.save(network, save_directory, **what_speaks_of(weights, getattr(model, "source", None)))
    model.generation_config.save_pretrained(save_directory)


def what_speaks_of(weights: Mapping[str, Tensor], source: Path | None) -> dict[str, Any]:
    """training and depth of the folder `source`, if it still holds these weights."""
    if source is None or not is_there(source / store.CONFIG):
        return {}
    written = to_safetensors({name: tensor.contiguous() for name, tensor in weights.items()})
    if hashlib.sha256(written).hexdigest() != read_json(source / store.CONFIG).get(store.WEIGHTS_SUM):
        return {}
    found: dict[str, Any] = {}
    if is_there(source / store.TRAINING):
        found["training"] = read_bytes(source / store.TRAINING, MAX_TRAINING).decode()
    if is_there(source / store.DEPTH):
        found["depth"] = json.loads(read_bytes(source / store.DEPTH, MAX_TRAINING))
    return found
