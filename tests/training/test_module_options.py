"""Options of the training module that change how a batch is computed, and not what it gives."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mull.models import (
    InnerThinkingConfig,
    InnerThinkingTransformer,
    RecurrentDepthConfig,
    RecurrentDepthTransformer,
    Transformer,
    TransformerConfig,
)
from mull.training.iterations import Fixed
from mull.training.module import TrainingModule

SMALL: dict[str, Any] = {"vocab_size": 8, "d_model": 16, "n_heads": 2, "d_ff": 16, "max_length": 32}


class Own(nn.Module):
    """A network that can do neither."""

    def forward(self, input_ids: Tensor, iterations: int) -> Any: ...


def test_the_options_reach_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards compile against a network that comes after the module was made, as that of --from does."""
    module = TrainingModule(
        RecurrentDepthTransformer(RecurrentDepthConfig(**SMALL)), Fixed(3), compile=True, checkpoint_iterations=True
    )
    module.network = RecurrentDepthTransformer(RecurrentDepthConfig(**SMALL)).train()
    module.configure_model()
    blocks = module.network.compiled_training
    module.configure_model()
    assert blocks is not None and module.network.compiled_training is blocks
    module.network.compiled_training = None
    asked: list[bool] = []
    real = torch.utils.checkpoint.checkpoint
    monkeypatch.setattr("mull.models.loop.checkpoint", lambda *args, **how: asked.append(True) or real(*args, **how))
    module.output_for(torch.zeros(2, 4, dtype=torch.int64), 0)
    assert asked == [True] * 3


def test_what_a_network_cannot_do_is_refused() -> None:
    """Guards against an option that would do nothing."""
    thinking = InnerThinkingTransformer(InnerThinkingConfig(**SMALL))
    plain = Transformer(TransformerConfig(**SMALL, n_layers=1))
    with pytest.raises(ValueError, match="cannot be compiled"):
        TrainingModule(thinking, Fixed(2), compile=True)
    with pytest.raises(ValueError, match="a Own has no compile_training: compile is refused, leave it out"):
        TrainingModule(Own(), Fixed(2), compile=True)
    for network, sampler in ((thinking, Fixed(2)), (plain, None), (Own(), Fixed(2))):
        with pytest.raises(ValueError, match=f"this {type(network).__name__} has no iterations that are computed"):
            TrainingModule(network, sampler, checkpoint_iterations=True)
