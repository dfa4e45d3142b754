"""Public recurrent-depth checkpoints in and out: the Hugging Face layout of Huginn (arXiv 2502.05171), at any shape.

The layout is a config.json of model_type `huginn_raven` and one model.safetensors, or several with an index. It holds
the model of models/recurrent_depth.py with `concat` injection, sandwich wiring, interleaved rotary positions and as
many key/value heads as heads; what it cannot express is refused, but for the noise of training (`state_noise`), which
is left behind. Only names differ (`NAMES`), and:

    qk_bias      (2, 1, H, W) there, (2 H, W) here
    freqs_cis    rotary tables, which are written for others and never read: a stored one may have been rounded
    lm_head      may be absent or a copy of the embedding where the head is tied

The folder's own Python files are never run, and weights are never read from a pickle.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from tokenizers import Tokenizer

from mull.checkpoints.files import AGAIN, damaged, is_there, read_json, shown
from mull.checkpoints.replacing import replace_all
from mull.checkpoints.tensors import Stored, stored_in
from mull.models import LanguageModel, RecurrentDepthConfig
from mull.models.layers import rotation_angles

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
MODEL_TYPE = "huginn_raven"
MAX_TABLE = 1 << 30  # bytes
NAMES = {  # there -> here
    "transformer.wte": "embedding",
    "transformer.ln_f": "final_norm",
    "transformer.adapter": "injection.adapter",
    "transformer.core_block": "core",
    "transformer.prelude": "prelude",
    "transformer.coda": "coda",
    "attn.Wqkv": "attention.qkv",
    "attn.proj": "attention.out",
    "attn.qk_bias": "attention.qk_bias",
    "mlp.fc": "mlp.gate_up",
    "mlp.proj": "mlp.down",
    "norm_1": "attention_norm",
    "norm_2": "attention_post_norm",
    "norm_3": "mlp_norm",
    "norm_4": "mlp_post_norm",
    "lm_head": "head",
}
FIELDS = {  # here -> there
    "vocab_size": "padded_vocab_size",
    "d_model": "n_embd",
    "n_heads": "n_heads",
    "d_ff": "intermediate_size",
    "max_length": "block_size",
    "norm_eps": "norm_eps",
    "rope_base": "rope_base",
    "tie_embeddings": "tie_embeddings",
    "qk_bias": "qk_bias",
    "n_prelude": "n_layers_in_prelude",
    "n_core": "n_layers_in_recurrent_block",
    "n_coda": "n_layers_in_coda",
    "mean_iterations": "mean_recurrence",
}
FIXED = {  # what the layout may say and we can follow; a folder that leaves a field out means the first value
    "block_class_name": ("SandwichBlock",),
    "norm_class_name": ("RMSNorm_llama",),
    "mlp_class_name": ("GatedMLP",),
    "nonlin_name": ("SiLU",),
    "injection_type": ("linear",),
    "bias": (False,),
    "state_init": ("like-init", "zero"),
}
OURS = {  # fields of ours that the layout has no word for, at the values it implies
    "injection": "concat",
    "wiring": "sandwich",
    "positions": "rotary",
    "rotary_layout": "interleaved",
    "qk_norm": False,
    "exit_gate": False,
    "value_head": False,
    "causal": True,
    "board": False,
    "window": 0,
    "convolution": "none",
    "residual_scale": 1.0,
    "damping": 1.0,
    "answer_feedback": False,
}


def is_huginn(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of the public recurrent-depth layout, and not of mull's own."""
    return config.get("model_type") == MODEL_TYPE


def stored_tensors(folder: Path, config: RecurrentDepthConfig) -> dict[str, Stored]:
    """Where the weights lie, by our names. Raises ValueError or FileNotFoundError that names what is wrong.

    A sharded index is believed: a tensor is taken from the file that it names, and no other copy is looked at.
    """
    placed = placed_tensors(folder)
    tensors: dict[str, Stored] = {}
    for file, names in placed.items():
        there = stored_in(folder / file)
        for name in there if names is None else names:
            if name not in there:
                raise damaged(folder / file, f"lacks {shown(name)}, which {INDEX} places there")
            if name == "freqs_cis" or (name == "lm_head.weight" and config.tie_embeddings):
                continue
            if our_name(name) in tensors:
                raise damaged(folder / file, f"holds {shown(name)} under two names")
            tensors[our_name(name)] = flattened(there[name])
    return tensors


def flattened(tensor: Stored) -> Stored:
    """The biases of queries and keys, (2, 1, H, W) there and (2 H, W) here; other tensors as they are."""
    if not tensor.name.endswith("qk_bias") or len(tensor.shape) != 4:
        return tensor
    return replace(tensor, shape=(tensor.shape[0] * tensor.shape[1] * tensor.shape[2], tensor.shape[3]))


def read_config(folder: Path) -> RecurrentDepthConfig:
    """The configuration by our names; what the layout allows and we cannot follow is refused."""
    said, file = read_json(folder / CONFIG), folder / CONFIG
    missing = sorted(set(FIELDS.values()) - set(said))
    if missing:
        raise damaged(file, f"lacks {', '.join(missing)} (a {MODEL_TYPE} configuration)")
    for field, allowed in FIXED.items():
        if said.get(field, allowed[0]) not in allowed:
            remedy = f"it must be {' or '.join(map(repr, allowed))}"
            raise damaged(file, f"{field} {shown(repr(said[field]))} is a variant that is not supported", remedy)
    if said.get("num_key_value_heads", said["n_heads"]) != said["n_heads"]:
        heads = shown(repr(said["num_key_value_heads"]))
        raise damaged(file, f"num_key_value_heads {heads} must equal n_heads {shown(repr(said['n_heads']))}")
    ends = said.get("eos_token_id")
    stop_tokens = tuple(ends) if isinstance(ends, list) else () if ends is None else (ends,)
    try:
        return RecurrentDepthConfig(
            **{ours: said[theirs] for ours, theirs in FIELDS.items()},
            initial_state="zero" if said.get("state_init") == "zero" else "normal",
            stop_tokens=stop_tokens,
        )
    except (ValueError, TypeError, OverflowError) as error:
        raise damaged(file, str(error)) from error


def placed_tensors(folder: Path) -> dict[str, list[str] | None]:
    """The safetensors files, and the tensors to take from each: those that the index places there, or all (None)."""
    placed: dict[str, list[str] | None] = {WEIGHTS: None}
    if is_there(folder / INDEX):
        index = read_json(folder / INDEX).get("weight_map")
        if not isinstance(index, dict) or not all(isinstance(file, str) for file in index.values()):
            raise damaged(folder / INDEX, "has no weight_map of tensors to files")
        placed = {file: [name for name in index if index[name] == file] for file in sorted(set(index.values()))}
    for file in placed:
        if Path(file).name != file:
            raise damaged(folder / INDEX, f"names {shown(file)!r}, which lies outside the folder")
        if not is_there(folder / file):
            raise FileNotFoundError(f"{folder / shown(file)} is missing; {instead(folder / file)}")
    return placed


def weights_file(folder: Path) -> Path:
    """The file that says where the weights are: the index where there is one."""
    return folder / (INDEX if is_there(folder / INDEX) else WEIGHTS)


def instead(missing: Path) -> str:
    """What to do about missing weights: a pickle that lies beside them is named, and not read."""
    pickled = sorted(path.name for end in ("bin", "pt", "pth", "ckpt") for path in missing.parent.glob(f"*.{end}"))
    return f"{shown(pickled[0])} is a pickle, which is never read: save as safetensors" if pickled else AGAIN


def our_name(name: str) -> str:
    """The name that a tensor of the public layout has in mull's `RecurrentDepthTransformer`."""
    for theirs, ours in NAMES.items():
        name = name.replace(theirs, ours)
    return name


def their_name(name: str) -> str:
    """The name that a tensor of mull's `RecurrentDepthTransformer` has in the public layout."""
    for theirs, ours in reversed(NAMES.items()):  # longer names of ours stand after their beginnings
        name = name.replace(f"{ours}.", f"{theirs}.") if not ours.endswith("qk_bias") else name.replace(ours, theirs)
    return name


def write(model: LanguageModel, folder: Path, tokenizer: Tokenizer | None = None) -> None:
    """Write a folder of the public layout, all files or none. Raises ValueError for what the layout cannot express."""
    config = model.config
    if type(config) is not RecurrentDepthConfig:
        raise ValueError(f"the public layout holds recurrent-depth models, not a {type(model).__name__}")
    wrong = [f"{name} {getattr(config, name)!r}" for name, value in OURS.items() if getattr(config, name) != value]
    if config.kv_heads != config.n_heads:
        wrong.append(f"n_kv_heads {config.n_kv_heads!r}")
    if wrong:
        raise ValueError(f"the public layout cannot express {', '.join(wrong)}; train with {allowed_values()}")
    table = 4 * config.max_length * config.head_dim
    if table > MAX_TABLE:
        raise ValueError(
            f"max_length {config.max_length} makes a rotary table of {table / 1e9:.1f} GB, which the public layout "
            f"stores; the limit is {MAX_TABLE / 1e9:.1f} GB"
        )
    weights = {}
    for name, tensor in model.state_dict().items():
        if name.endswith("qk_bias"):
            tensor = tensor.reshape(2, 1, config.n_heads, config.head_dim)
        weights[their_name(name)] = tensor.contiguous()
    weights["freqs_cis"] = rotary_table(config)
    contents = {WEIGHTS: to_safetensors(weights, metadata={"format": "pt"})}
    if tokenizer is not None:
        contents["tokenizer.json"] = tokenizer.to_str(pretty=True).encode()
    contents[CONFIG] = (json.dumps(their_config(config, next(model.parameters()).dtype), indent=2) + "\n").encode()
    replace_all(Path(folder).expanduser(), contents)


def allowed_values() -> str:
    """The fields that the public layout cannot vary and the values that it needs, as a text for messages."""
    return ", ".join(f"{name}={value}" for name, value in OURS.items()) + " and n_kv_heads equal to n_heads"


def their_config(config: RecurrentDepthConfig, dtype: torch.dtype) -> dict[str, Any]:
    """The configuration by their names. `tie_word_embeddings` is not among them: the public class makes it out of
    `tie_embeddings` and fails on one that it is given."""
    layers = config.n_prelude + config.n_core + config.n_coda
    return {
        "architectures": ["RavenForCausalLM"],
        "model_type": MODEL_TYPE,
        **{theirs: getattr(config, ours) for ours, theirs in FIELDS.items()},
        **{field: allowed[0] for field, allowed in FIXED.items()},
        "intermediate_size": config.mlp_width,
        "vocab_size": config.vocab_size,
        "n_layers": layers,
        "num_key_value_heads": config.n_heads,
        "head_dim": config.head_dim,
        "effective_expected_depth": config.effective_depth,
        "state_init": "zero" if config.initial_state == "zero" else "like-init",
        "eos_token_id": list(config.stop_tokens) or None,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }


def rotary_table(config: RecurrentDepthConfig) -> torch.Tensor:
    """The rotations of all positions, in fp32, (1, max_length, 1, W/2, 2)."""
    positions = torch.arange(config.max_length)
    return rotation_angles(positions, config.head_dim, config.rope_base, torch.float32)[None]
