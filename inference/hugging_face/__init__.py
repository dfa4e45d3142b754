"""mull folders at home in transformers (the extra `hf`): `import mull.inference.hugging_face` registers every family.

    import mull.inference.hugging_face
    model = AutoModelForCausalLM.from_pretrained("checkpoints/text")
    tokenizer = AutoTokenizer.from_pretrained("checkpoints/text")
    model.generate(**tokenizer("Tom has", return_tensors="pt"), iterations=16)

A folder is opened as it stands, by mull's own store: nothing is exported, and nothing in it is executed. `register()`
again after a family of your own has been defined.
"""

from importlib.metadata import PackageNotFoundError, version

OLDEST = (5, 24)  # before, caches had another name in every call
try:
    found = version("transformers")
except PackageNotFoundError:
    found = "none"
if found == "none" or tuple(map(int, found.split(".")[:2])) < OLDEST:
    raise ImportError(
        f"mull in transformers needs transformers 5.24 or later, and {found} is here: pip install 'mull[hf]'"
    )

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from mull.inference.hugging_face.cache import MullCache
from mull.inference.hugging_face.configuration import CONFIGS, MullConfig, config_class
from mull.inference.hugging_face.folders import FolderError
from mull.inference.hugging_face.model import MULL_MODELS, MullForCausalLM, MullOutput, model_class
from mull.inference.hugging_face.tokenizer import MullTokenizer
from mull.models.families import FAMILIES


def register() -> None:
    """Make every registered family known to AutoConfig, AutoModelForCausalLM and AutoTokenizer."""
    for model_type in FAMILIES:
        if model_type not in CONFIGS:
            config = config_class(model_type)
            AutoConfig.register(model_type, config)
            AutoModelForCausalLM.register(config, model_class(config))
            AutoTokenizer.register(config, tokenizer_class=MullTokenizer)


register()

__all__ = [
    "CONFIGS",
    "MULL_MODELS",
    "FolderError",
    "MullCache",
    "MullConfig",
    "MullForCausalLM",
    "MullOutput",
    "MullTokenizer",
    "register",
]
