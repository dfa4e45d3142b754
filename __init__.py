"""mull: latent-reasoning language models that think longer by iterating.

    model = mull.load("checkpoints/parity")
    out = model(input_ids, iterations=32)          # depth is an argument, per call

Everything here is imported when first used, so that `import mull` costs nothing and a user who only runs a model
never loads the trainer.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mull.checkpoints.store import load, save
    from mull.inference.generate import generate
    from mull.inference.strategies.solving import solve
    from mull.inference.tracing.trace import trace
    from mull.models import (
        InnerThinkingConfig,
        InnerThinkingTransformer,
        ModelConfig,
        ModelOutput,
        RecurrentDepthConfig,
        RecurrentDepthTransformer,
        Transformer,
        TransformerConfig,
    )

HOMES = {
    "load": "mull.checkpoints.store",
    "save": "mull.checkpoints.store",
    "generate": "mull.inference.generate",
    "solve": "mull.inference.strategies.solving",
    "trace": "mull.inference.tracing.trace",
    "InnerThinkingConfig": "mull.models",
    "InnerThinkingTransformer": "mull.models",
    "ModelConfig": "mull.models",
    "ModelOutput": "mull.models",
    "RecurrentDepthConfig": "mull.models",
    "RecurrentDepthTransformer": "mull.models",
    "Transformer": "mull.models",
    "TransformerConfig": "mull.models",
}

__version__ = "0.1.0"
__all__ = [
    "InnerThinkingConfig",
    "InnerThinkingTransformer",
    "ModelConfig",
    "ModelOutput",
    "RecurrentDepthConfig",
    "RecurrentDepthTransformer",
    "Transformer",
    "TransformerConfig",
    "generate",
    "load",
    "save",
    "solve",
    "trace",
]


def __dir__() -> list[str]:
    """The public names of the package, those that are not imported yet included, for `dir(mull)`."""
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first used, so that `import mull` loads no torch.

    Raises:
        AttributeError: there is no such name, nor a registered family whose class has it.
    """
    if name in HOMES:
        return getattr(import_module(HOMES[name]), name)
    if not name.startswith("_"):  # a family that this page does not name
        found = import_module("mull.models.families").class_named(name)
        if found is not None:
            return found
    raise AttributeError(f"module 'mull' has no attribute {name!r}")
