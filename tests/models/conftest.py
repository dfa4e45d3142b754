"""Small models for the tests of this folder: every value of every option, in odd shapes, with weights that matter.

Options are read off the annotations of the configurations and off the registries, families off theirs, so a new value
or a new family is tested without a new line here.
"""

from collections.abc import Callable
from dataclasses import fields
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from mull.models import InnerThinkingConfig, LanguageModel, ModelConfig, RecurrentDepthConfig
from mull.models.families import FAMILIES

Build = Callable[..., LanguageModel]
Configurations = st.SearchStrategy[ModelConfig]

MODEL_OF = {model_class.config_class: model_class for model_class in FAMILIES.values()}
SMALL = {
    "vocab_size": 11,
    "d_model": 24,
    "n_heads": 6,
    "n_kv_heads": 2,
    "d_ff": 20,
    "max_length": 64,
}  # grouped heads of width 4


def said(values: dict[str, Any]) -> str:
    return ",".join(f"{field}={value}" for field, value in values.items())


@cache
def options(family: type[ModelConfig]) -> dict[str, tuple[Any, ...]]:
    """The closed options of a family, {field: values}: Literal and bool annotations, and words of a registry."""
    every = get_type_hints(family)
    hints = {f.name: every[f.name] for f in fields(family)}
    closed = {name: get_args(hint) for name, hint in hints.items() if get_origin(hint) is Literal}
    closed |= {name: tuple(registry) for name, registry in family.choices.items()}
    return closed | {name: (False, True) for name, hint in hints.items() if hint is bool}


NUMBERS: list[dict[str, Any]] = [  # of numeric options, what changes what is computed
    {"window": 3},
    {"window": 2, "window_heads": 3},
    {"window": 2, "causal": False},
    {"window": 2, "causal": False, "board": True},
    {"convolution": "mlp", "kernel": 2, "window": 4},
    {"convolution": "attention", "positions": "none"},
    {"convolution": "mlp", "causal": False},
    {"residual_scale": 0.5},
]
CHOICES: list[tuple[type[ModelConfig], dict[str, Any]]] = [
    (family, {field: value})
    for family in MODEL_OF
    for field, values in options(family).items()
    for value in values
    if (field, value) != ("board", True)  # which goes with causal false alone: see NUMBERS
]
CHOICES += [
    (family, values)
    for family in MODEL_OF
    for values in NUMBERS
    if all(values[field] in among for field, among in options(family).items() if field in values)
]
ARRANGEMENTS: dict[type[ModelConfig], list[dict[str, Any]]] = {  # of layers; other families have their default one
    RecurrentDepthConfig: [{"n_prelude": p, "n_core": c, "n_coda": q} for p, c, q in ((1, 3, 2), (0, 1, 0), (2, 1, 0))],
    InnerThinkingConfig: [{"n_layers": 3}, {"n_layers": 2, "thinking_layers": (0, 1), "mean_iterations": 3}],
}
CONFIGS = {  # defaults are many fields' values but one configuration, tested once
    family(**SMALL, **layers, **values): f"{family.model_type}-{list(layers.values())}-{said(values)}"
    for family, values in CHOICES
    for layers in ARRANGEMENTS.get(family, [{}])
}


@pytest.fixture(scope="session", params=list(CONFIGS), ids=list(CONFIGS.values()))
def config(request: pytest.FixtureRequest) -> ModelConfig:
    """One configuration for every value of every option in every arrangement of layers."""
    return request.param


@pytest.fixture(scope="session", params=CHOICES, ids=lambda c: f"{c[0].model_type}-{said(c[1])}")
def some_config(request: pytest.FixtureRequest) -> Configurations:
    """For every value of every option: configurations with it, everything else drawn."""
    family, values = request.param
    return configurations(family, **values)


CAUSAL = [(family, {**values, "causal": True}) for family, values in CHOICES if values.get("causal", True)]


@pytest.fixture(scope="session", params=CAUSAL, ids=lambda c: f"{c[0].model_type}-{said(c[1])}")
def some_causal_config(request: pytest.FixtureRequest) -> Configurations:
    """The same of models that may have a cache: their tokens see nothing that comes later."""
    family, values = request.param
    return configurations(family, **values)


@pytest.fixture(scope="session")
def any_config() -> Configurations:
    """Configurations of any family with everything drawn."""
    return st.sampled_from(list(MODEL_OF)).flatmap(configurations)


@pytest.fixture(scope="session")
def any_causal_config() -> Configurations:
    """The same of models that may have a cache."""
    return st.sampled_from(list(MODEL_OF)).flatmap(lambda family: configurations(family, causal=True))


@st.composite
def configurations(draw: st.DrawFn, family: type[ModelConfig], **fixed: Any) -> ModelConfig:
    kv_heads, group, half_width = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    counts = {"n_layers": (1, 3), "n_prelude": (0, 2), "n_core": (1, 3), "n_coda": (0, 2), "mean_iterations": (1, 9)}
    names = {f.name for f in fields(family)}
    values: dict[str, Any] = {name: draw(st.integers(*limits)) for name, limits in counts.items() if name in names}
    values |= {name: draw(st.sampled_from(choices)) for name, choices in options(family).items()}
    values |= {"window": draw(st.sampled_from((0, 0, 1, 4))), "kernel": draw(st.integers(1, 5))}
    if values["window"]:
        values["window_heads"] = draw(st.sampled_from((None, group * draw(st.integers(0, kv_heads)))))
    values |= {"d_ff": draw(st.sampled_from((None, 7, 16))), "vocab_size": draw(st.integers(2, 13)), "max_length": 64}
    heads = {"n_heads": kv_heads * group, "n_kv_heads": kv_heads, "d_model": kv_heads * group * 2 * half_width}
    if fixed.get("causal", values["causal"]) or fixed.get("convolution", "none") != "none":
        values["board"] = False
    if fixed.get("board", values["board"]):  # what joins earlier tokens does not go with it
        values["convolution"] = "none"
    if fixed.get("window_heads") is not None:  # which must be whole groups of heads
        fixed = fixed | {"window_heads": group}
    elif "window" in fixed:
        values["window_heads"] = None
    return family(**values | heads | fixed)


@pytest.fixture(scope="session")
def build() -> Build:
    """config -> model in fp64 and eval mode; norms, biases and decays are moved off their start, so each matters."""

    def build(config: ModelConfig, dtype: torch.dtype = torch.float64, seed: int = 0) -> LanguageModel:
        torch.manual_seed(seed)
        model = MODEL_OF[type(config)](config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.2 * torch.randn_like(parameter)
        return model.to(dtype)

    return build


@pytest.fixture(scope="session")
def small() -> Callable[..., RecurrentDepthConfig]:
    """A recurrent-depth configuration of odd shape; keyword arguments change fields."""

    def small(**changes: Any) -> RecurrentDepthConfig:
        return RecurrentDepthConfig(**SMALL | ARRANGEMENTS[RecurrentDepthConfig][0] | changes)

    return small


@pytest.fixture(scope="session")
def tokens() -> Callable[..., Tensor]:
    """(config, B, T) -> token ids of a fixed stream."""

    def tokens(config: ModelConfig, batch_size: int, length: int, seed: int = 1) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(config.vocab_size, (batch_size, length), generator=generator)

    return tokens
