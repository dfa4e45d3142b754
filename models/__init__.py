"""The mathematics: layers, the loop, and the families built from them. No I/O, no hidden state."""

from mull.models.cache import Cache
from mull.models.config import ModelConfig
from mull.models.inner_thinking import InnerThinkingConfig, InnerThinkingTransformer
from mull.models.iterated import IteratedModel
from mull.models.language_model import LanguageModel
from mull.models.loop import iterate
from mull.models.output import ModelOutput, Reading
from mull.models.recurrent_depth import RecurrentDepthConfig, RecurrentDepthTransformer
from mull.models.transformer import Transformer, TransformerConfig

__all__ = [
    "Cache",
    "InnerThinkingConfig",
    "InnerThinkingTransformer",
    "IteratedModel",
    "LanguageModel",
    "ModelConfig",
    "ModelOutput",
    "Reading",
    "RecurrentDepthConfig",
    "RecurrentDepthTransformer",
    "Transformer",
    "TransformerConfig",
    "iterate",
]
