"""`mull train --from FOLDER`: a run that starts from the weights of a checkpoint folder, for fine-tuning.

The architecture comes from the folder; a configuration may repeat it and may not contradict it, but for an exit gate,
which a model without one may gain (it starts afresh, and every other weight is the folder's), and for what matters in
training only. Data, schedule and optimizer are those of the configuration, and the first step is step 0. A folder of
the public layout is one like any other. Which weights these were is part of the run (identity.py).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from mull.checkpoints import load_tokenizer
from mull.checkpoints.files import checksum_of
from mull.checkpoints.huginn import stored_tensors
from mull.checkpoints.store import TOKENIZER, existing, load, read_config
from mull.models import IteratedModel, LanguageModel, ModelConfig
from mull.models.families import FAMILIES
from mull.training.module import TrainingModule

OF_THE_DATA = ("vocab_size", "stop_tokens")  # fields of the architecture that the data module decides
TRAINING_ONLY = ("state_noise",)  # fields that no weight and no answer depends on: a run may set them anew
# What a run may have that the folder has not: in the folder, in the run.
GAINED = {"exit_gate": (False, True), "value_head": (False, True)}


class Start(NamedTuple):
    """Where the weights of a run come from.

    Attributes:
        folder: the checkpoint folder.
        config: the architecture that lies there.
        sha256: checksum of its weights.
    """

    folder: Path
    config: ModelConfig
    sha256: str

    @property
    def network(self) -> type[LanguageModel]:
        """The class of the network."""
        return FAMILIES[self.config.model_type]


def read_start(folder: str) -> Start:
    """What lies in a checkpoint folder, but for the weights themselves.

    Raises:
        FileNotFoundError, ValueError: there is no checkpoint that can be loaded.
    """
    path = existing(folder)
    config, checksum = read_config(path)
    if checksum is None:  # the public layout has none
        files = sorted({tensor.file for tensor in stored_tensors(path, config).values()})  # type: ignore[arg-type]
        checksum = hashlib.sha256("".join(map(checksum_of, files)).encode()).hexdigest()
    return Start(path, config, checksum)


def base_configuration(start: Start) -> str:
    """The architecture of a folder as a configuration, which the user's own files come after."""
    name, module = start.network.__name__, start.network.__module__
    class_path = f"mull.{name}" if module.startswith("mull.models.") else f"{module}.{name}"
    return json.dumps({"model": {"network": {"class_path": class_path, "init_args": {"config": architecture(start)}}}})


def architecture(start: Start) -> dict[str, Any]:
    """The fields that a configuration may repeat, as JSON has them."""
    fields = json.loads(json.dumps(asdict(start.config)))
    return {name: value for name, value in fields.items() if name not in OF_THE_DATA}


def check_architecture(start: Start, network: dict[str, Any]) -> None:
    """Raise a ValueError if a configuration contradicts the folder.

    Args:
        start: where the weights come from.
        network: the resolved `model.network`: class_path and init_args.
    """
    remedy = f"leave it out: with --from {start.folder} the architecture is that of the folder"
    name = str(network["class_path"]).rpartition(".")[2]
    if name != start.network.__name__:
        raise ValueError(f"model.network is a {name}, and {start.folder} holds a {start.network.__name__}; {remedy}")
    said = dict((network.get("init_args") or {}).get("config") or {})
    of_the_data = {each: getattr(start.config, each) for each in OF_THE_DATA}
    asked = architecture(start._replace(config=type(start.config)(**{**said, **of_the_data})))  # null: what it means
    for field, value in architecture(start).items():
        if field not in TRAINING_ONLY and asked[field] != value and GAINED.get(field) != (value, asked[field]):
            raise ValueError(
                f"model.network.init_args.config.{field} is {said[field]}, and {value} in {start.folder}; {remedy}"
            )


def give_weights(start: Start, module: TrainingModule, data: Any) -> None:
    """Give the network of a run the weights of the folder; its shapes become those of the folder.

    An exit gate and a process reward that the folder lacks keep the weights that they start with, as does what the
    loss begins anew.

    Raises:
        ValueError: the tokens of the data are not those of the folder, or its weights are damaged.
    """
    check_tokens(start, data)
    weights = load(start.folder).state_dict()
    if data.vocab_size != start.config.vocab_size:  # public vocabularies are padded beyond their tokenizer
        config = module.network.config
        assert isinstance(config, ModelConfig)
        module.network = start.network(replace(config, vocab_size=start.config.vocab_size))
    network = module.network
    gained = [*network.value_parameters()] if isinstance(network, LanguageModel) else []
    gained += network.gate_parameters() if isinstance(network, IteratedModel) else []
    own = network.state_dict(keep_vars=True).items()
    fresh = {name: value.detach() for name, value in own if any(value is each for each in gained)}
    begun = module.loss.begins_anew(network)
    anew = {name: value.detach() for name, value in own if any(value is each for each in begun)}
    network.load_state_dict({**fresh, **weights, **anew})


def check_finished(module: TrainingModule, start: Start | None) -> None:
    """Raise a ValueError where a loss trains a part of a model that is random otherwise."""
    if start is None and module.loss.trained(module.network) is not None:
        raise ValueError(
            f"{type(module.loss).__name__} trains a part of a finished model and freezes the rest, which would stay as "
            "it begins: name the model with --from FOLDER"
        )


def check_tokens(start: Start, data: Any) -> None:
    """Raise a ValueError if an id of the data means something else in the folder, or nothing."""
    if data.vocab_size > start.config.vocab_size:
        raise ValueError(
            f"the data has {data.vocab_size} tokens and the model in {start.folder} {start.config.vocab_size}; "
            f"{remedy(start, data)}"
        )
    if not (start.folder / TOKENIZER).is_file() or not hasattr(data, "tokenizer"):
        return
    known = load_tokenizer(start.folder).get_vocab()
    for token, number in data.tokenizer.get_vocab().items():
        if known.get(token, number) != number:
            raise ValueError(
                f"the token {token!r} is {number} in the data and {known[token]} in {start.folder}; "
                f"{remedy(start, data)}"
            )


def remedy(start: Start, data: Any) -> str:
    """How data comes to have the tokens of a folder: a task makes its own, out of its options."""
    if hasattr(data, "task"):
        return "name the task that the folder was trained on, with its options (those of its training.yaml)"
    return f"use its own tokenizer: --data.init_args.tokenizer {start.folder / TOKENIZER}"
