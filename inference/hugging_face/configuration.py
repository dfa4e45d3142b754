"""The configuration of a mull model as transformers has it: the fields of the family's own, under their own names.

    AutoConfig.from_pretrained("checkpoints/text").mean_iterations

What other tools ask every configuration for answers too: hidden_size, num_attention_heads, max_position_embeddings and
so on are other names of mull's fields. There is no num_hidden_layers: how many layers run is the depth, and depth is an
argument of a call.
"""

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import PreTrainedConfig

from mull.checkpoints import store
from mull.inference.hugging_face.folders import in_one_line
from mull.models import LanguageModel, ModelConfig
from mull.models.families import FAMILIES

SUMS = ("mull_version", store.CONFIG_SUM, store.WEIGHTS_SUM, store.TOKENIZER_SUM)  # of a folder, not of a model


class MullConfig(PreTrainedConfig):
    """What the configurations of all families share.

    Attributes:
        family: the class of mull's model.
        backprop_iterations: of forward calls that name none, in training; not stored, since it is no part of a model.
        auxiliary_weight: weight of the routers' auxiliary loss in training; not stored either.
    """

    family: ClassVar[type[LanguageModel]]
    keys_to_ignore_at_inference = ["cache", "hidden_states", "iterations"]  # noqa: RUF012  # transformers' own field
    attribute_map = {  # noqa: RUF012
        "hidden_size": "d_model",
        "intermediate_size": "d_ff",
        "num_attention_heads": "n_heads",
        "num_key_value_heads": "n_kv_heads",
        "max_position_embeddings": "max_length",
        "rms_norm_eps": "norm_eps",
        "tie_word_embeddings": "tie_embeddings",
    }

    backprop_iterations: int | None = None
    auxiliary_weight: float = 0.001

    def __post_init__(self, **others: Any) -> None:
        complete = asdict(self.architecture())  # what is None is resolved, and what is wrong is refused
        for name, value in complete.items():
            setattr(self, name, value)
        for name in SUMS:
            others.pop(name, None)
        self.dtype: Any = number_type(self.dtype or others.pop("torch_dtype", None))
        super().__post_init__(**others)

    def architecture(self) -> ModelConfig:
        """The configuration of mull's model. Raises ValueError for values that are none."""
        kind = self.family.config_class
        given = {field.name: getattr(self, field.name, None) for field in fields(kind)}
        try:
            return kind(**{name: value for name, value in given.items() if value is not None})
        except TypeError:
            raise ValueError(f"{type(self).__name__} needs vocab_size") from None

    @classmethod
    def of(cls, architecture: ModelConfig, **others: Any) -> "MullConfig":
        """The configuration of a model of mull's."""
        return cls(**asdict(architecture), **others)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As transformers has it, in a folder of its own. Raises ValueError where it would part weights from the
        config.json that vouches for them."""
        if (Path(save_directory) / store.WEIGHTS).exists():
            raise ValueError(
                f"{save_directory} holds a model, whose config.json vouches for it; save the model instead"
            )
        super().save_pretrained(save_directory, *args, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        kwargs.setdefault("name_or_path", str(pretrained_model_name_or_path))
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As transformers has it; of a folder on this machine its config.json is read anew, as strictly as mull does.

        Raises:
            FolderError: the folder is damaged, or of another family.
        """
        place = Path(str(kwargs.get("name_or_path") or "")).expanduser()
        said = dict(config_dict)
        if (place / store.CONFIG).exists() and (place / store.WEIGHTS).exists():
            with in_one_line():
                architecture, _ = store.read_config(store.existing(place))
                if type(architecture) is not cls.family.config_class:
                    raise ValueError(f"{place} holds a {architecture.model_type}, no {cls.model_type}; use AutoConfig")
            said = {**asdict(architecture), "model_type": cls.model_type}
        return super().from_dict(said, **kwargs)


def number_type(dtype: Any) -> torch.dtype | None:
    """The type that a name or a type means; None for the stored one."""
    if dtype in (None, "auto"):
        return None
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype):
        raise ValueError(f"dtype must be a type of torch or its name, such as bfloat16, not {dtype!r}")
    return found


CONFIGS: dict[str, type[MullConfig]] = {}  # by model_type


def config_class(model_type: str) -> type[MullConfig]:
    """The configuration class of a family, made of the fields of mull's: MullRecurrentDepthConfig, for example."""
    family = FAMILIES[model_type]
    names = [field.name for field in fields(family.config_class)]
    body: dict[str, Any] = {
        "__doc__": f"The configuration of a {model_type} model; its fields are those of "
        f"{family.config_class.__module__}.{family.config_class.__name__}.",
        "__module__": __name__,
        "__annotations__": dict.fromkeys(names, Any),
        "model_type": model_type,
        "family": family,
        **dict.fromkeys(names),  # None is the family's default
    }
    name = "Mull" + "".join(word.capitalize() for word in model_type.split("_")) + "Config"
    CONFIGS[model_type] = globals()[name] = type(name, (MullConfig,), body)  # where pickle finds it
    return CONFIGS[model_type]
