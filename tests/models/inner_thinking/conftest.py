"""Inner-thinking models at every option value, and their slow twin: every pass over all tokens, and `where` in the end.

The general equivalences (padding, batches, caches in chunks, gradients) run for this family too, in the other files of
the folder above. fp64; bit for bit where nothing may change at all.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from mull.models import InnerThinkingConfig, InnerThinkingTransformer, LanguageModel
from mull.models.rules import RULES
from mull.models.selection import Select, before, behind

Make = Callable[..., InnerThinkingTransformer]
Pass = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | float], Tensor]  # (Y, f(Y), w, selected, phi) -> next Y

SHAPE = {"vocab_size": 11, "d_model": 24, "n_heads": 6, "n_kv_heads": 2, "d_ff": 20, "max_length": 200, "n_layers": 3}
VARIANTS = [
    *({"rule": rule} for rule in RULES),
    {"gate": "tanh"},
    {"step_encoding": False},
    {"routing": False},
    {"detached_auxiliary": True},
    {"router_temperature": 3.0},
    {"step_encoding": False, "step_start": 0.1},
    {"wiring": "sandwich", "qk_norm": True, "rotary_layout": "half"},
    {"positions": "none", "qk_bias": False},
    {"thinking_layers": (0, 1, 2), "mean_iterations": 3},
    {"rule": "loop", "routing": False, "step_encoding": False},
]


@pytest.fixture(scope="session", params=VARIANTS, ids=str)
def variant(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Options of the configuration: every value of each, and the combinations that mean something of their own."""
    return request.param


@pytest.fixture(scope="session")
def make_config() -> Callable[..., InnerThinkingConfig]:
    """(options) -> a configuration of odd shape."""

    def make_config(**changes: Any) -> InnerThinkingConfig:
        return InnerThinkingConfig(**SHAPE | changes)

    return make_config


@pytest.fixture(scope="session")
def make(build: Callable[..., LanguageModel], tokens: Callable[..., Tensor]) -> Make:
    """(options) -> a calibrated model in fp64 and eval mode whose every weight matters."""

    @cache
    def calibrated(config: InnerThinkingConfig) -> InnerThinkingTransformer:
        model = build(config)
        assert isinstance(model, InnerThinkingTransformer)
        model.calibrate(tokens(config, 8, 40, seed=7))
        return model

    def make(**changes: Any) -> InnerThinkingTransformer:
        return deepcopy(calibrated(InnerThinkingConfig(**SHAPE | changes)))

    return make


@pytest.fixture(scope="session")
def capacities() -> Callable[..., list[Any]]:
    """(model, count) -> capacities that it takes at this count, or at its own, 4 or less; extremes among them, and one
    for each pass."""

    def capacities(model: InnerThinkingTransformer, count: int | None = None) -> list[Any]:
        passes = (count or model.config.mean_iterations) - 1
        return [0.0, 0.2, 0.5, 0.9, 1.0, (0.9, 0.0, 0.4)[:passes]] if model.config.routing else [None]

    return capacities


@pytest.fixture(scope="session")
def slow_twin() -> Callable[..., Tensor]:
    """(model, ids, iterations, capacity of each pass, selection, pass, phi's start) -> the logits that the head of
    inner_thinking.py asks for, as it is written."""

    def slow_twin(
        model: InnerThinkingTransformer,
        ids: Tensor,
        iterations: int,
        capacity: Sequence[float],
        select: Select,
        one_pass: Pass,
        first_scale: float,
    ) -> Tensor:
        config, context = model.config, model.context(ids)
        x = model.embed(ids)
        for index, layer in enumerate(model.layers):
            if index not in config.thinking:
                x = layer(x, context, (index, 0))
                continue
            phi = [1.0] + [first_scale] * 99
            if layer.step_encoding is not None:
                phi = [layer.step_encoding[min(t, len(layer.step_encoding) - 1)] for t in range(iterations)]
            y = phi[0] * layer(x, context, (index, 0))
            for t in range(1, iterations):
                f = layer(y, context, (index, t))
                if config.routing:
                    row = min(t, len(layer.router)) - 1
                    logits = (y / (y.square().mean(-1, keepdim=True) + config.norm_eps).sqrt()) @ layer.router[row]
                    logits = logits / config.router_temperature
                    w = {"sigmoid": torch.sigmoid, "tanh": torch.tanh}[config.gate](logits)[..., None]
                    selected = select(
                        logits, None, capacity[t - 1], behind(layer.thresholds[row], before(capacity, t))
                    )[..., None]
                    selected = selected & (capacity[t - 1] > 0)
                else:
                    w, selected = torch.ones_like(y[..., :1]), torch.ones_like(y[..., :1], dtype=torch.bool)
                y = one_pass(y, f, w, selected, phi[t])
            x = y
        return model.logits(x)

    return slow_twin
