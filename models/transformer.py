"""Transformer: the untied baseline, n_layers different layers of the same kind that the other families loop over.

    h = Layer_n(... Layer_1(sqrt(D) E[x]));   logits = E . norm(h)

It has no loop, so `iterations` is refused rather than ignored.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from mull.models.cache import Cache
from mull.models.config import ModelConfig
from mull.models.cost import Cost
from mull.models.language_model import LanguageModel, family, initialize
from mull.models.layers import Layer
from mull.models.output import ModelOutput, Reading


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(ModelConfig):
    """Configuration of the untied baseline; see `ModelConfig` for the shared fields.

    Args:
        n_layers: number of layers, each with weights of its own.
    """

    model_type: ClassVar[str] = "transformer"
    least: ClassVar[Mapping[str, int]] = {"n_layers": 1}

    n_layers: int = 4

    @property
    def effective_depth(self) -> int:
        return self.n_layers

    def once(self) -> Cost:
        return self.ends() + self.n_layers * self.layer()


@family
class Transformer(LanguageModel):
    """The untied baseline. See the head of this file."""

    config_class: ClassVar[type[ModelConfig]] = TransformerConfig
    config: TransformerConfig

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.n_layers))
        initialize(self)

    def forward(
        self,
        input_ids: Tensor,
        iterations: None = None,
        *,
        attention_mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> ModelOutput:
        """Next-token logits (B, T, V); state (B, T, D), the last layer's output; iterations (B, T), all 1.

        The arguments are those of every family (language_model.py), but `iterations` is refused: there is no loop.
        """
        self.check_depth(iterations)
        with torch.set_grad_enabled(torch.is_grad_enabled() and cache is None):
            context = self.context(input_ids, attention_mask, cache)
            x = self.through(self.layers, self.embed(input_ids), context, first=0)
            logits, value = self.logits(x), self.value(x)
            if cache is not None:
                context.commit(None)
        used = torch.ones_like(input_ids, dtype=torch.int64)
        return ModelOutput(logits=logits, value=value, state=x, iterations=used)

    def sweep(self, input_ids: Tensor, counts: Sequence[int | None]) -> Iterator[tuple[int | None, Reading]]:
        for count in counts:
            yield count, self(input_ids, count)
