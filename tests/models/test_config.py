"""Configurations: complete, frozen, keyword-only, and every mistake named with field, value and limit."""

from dataclasses import FrozenInstanceError, asdict, fields
from typing import Any, get_type_hints

import pytest

from mull.models import ModelConfig, RecurrentDepthConfig, TransformerConfig
from mull.models.families import FAMILIES as REGISTERED

Fields = dict[str, Any]

FAMILIES = [model_class.config_class for model_class in REGISTERED.values()]
OPEN = {"step_start"}  # None says something of its own: what the rule says


@pytest.mark.parametrize("family", FAMILIES)
def test_after_construction_no_field_is_left_open(family: type[ModelConfig]) -> None:
    config = family(vocab_size=5, d_model=100, n_heads=10)
    assert {name for name, value in asdict(config).items() if value is None} <= OPEN
    assert config.n_kv_heads == config.kv_heads == 10
    assert config.head_dim == 10
    assert config.d_ff == config.mlp_width == 272  # 8/3 of 100 is 266.7; the next multiple of 8
    assert family(vocab_size=5, d_model=96).d_ff == 256  # 8/3 of 96 exactly


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_configuration_says_makes_it_again(family: type[ModelConfig]) -> None:
    config = family(vocab_size=5, d_model=100, n_heads=10, n_kv_heads=5, stop_tokens=[1, 4])
    assert config.stop_tokens == (1, 4)  # a list, as JSON has it, becomes a tuple
    assert family(**asdict(config)) == config


@pytest.mark.parametrize("family", FAMILIES)
def test_frozen_and_keyword_only(family: type[ModelConfig]) -> None:
    config = family(vocab_size=5)
    with pytest.raises(FrozenInstanceError):
        config.d_model = 8
    with pytest.raises(TypeError):
        family(5)
    with pytest.raises(TypeError, match="unknown"):
        family(vocab_size=5, unknown=1)


WRONG_VALUES = [
    ({"vocab_size": 0}, "vocab_size must be positive, not 0"),
    ({"d_model": -8}, "d_model must be positive, not -8"),
    ({"n_heads": 0}, "n_heads must be positive, not 0"),
    ({"n_kv_heads": 0}, "n_kv_heads must be positive, not 0"),
    ({"d_ff": 0}, "d_ff must be positive, not 0"),
    ({"max_length": 0}, "max_length must be positive, not 0"),
    ({"norm_eps": 0.0}, "norm_eps must be positive, not 0.0"),
    ({"norm_eps": float("nan")}, "norm_eps must be positive, not nan"),
    ({"rope_base": -1.0}, "rope_base must be positive, not -1.0"),
    ({"rope_base": float("inf")}, "rope_base must be positive, not inf"),
    ({"d_model": 10, "n_heads": 4}, "d_model 10 is not divisible by n_heads 4"),
    ({"d_model": 12, "n_heads": 4}, "rotary positions need an even head width; d_model / n_heads is 3"),
    ({"n_heads": 4, "n_kv_heads": 3}, "n_heads 4 is not divisible by n_kv_heads 3"),
    ({"max_length": 2**31}, "max_length 2147483648 is above 2,147,483,647"),
    ({"window": 10**20}, "window 100000000000000000000 is above 2,147,483,647"),
    ({"n_heads": 10_001}, "n_heads 10001 is above 10,000"),
    ({"stop_tokens": (1, 5)}, r"stop_tokens \[5\] lie outside the vocabulary of 5"),
]
WRONG_TYPES = [
    ({"d_model": "64"}, "d_model must be int, not '64'"),
    ({"d_model": None}, "d_model must be int, not None"),
    ({"d_model": 64.0}, "d_model must be int, not 64.0"),
    ({"n_heads": True}, "n_heads must be int, not True"),
    ({"d_ff": "8"}, r"d_ff must be int \| None, not '8'"),
    ({"norm_eps": "small"}, "norm_eps must be float, not 'small'"),
    ({"rope_base": True}, "rope_base must be float, not True"),
    ({"tie_embeddings": 1}, "tie_embeddings must be bool, not 1"),
    ({"wiring": "post"}, "wiring must be one of 'sandwich', 'pre_norm', not 'post'"),
    ({"positions": ["rotary"]}, r"positions must be one of 'rotary', 'none', not \['rotary'\]"),
    ({"stop_tokens": 5}, r"stop_tokens must be tuple\[int, \.\.\.\], not 5"),
    ({"stop_tokens": None}, r"stop_tokens must be tuple\[int, \.\.\.\], not None"),
    ({"stop_tokens": ["a"]}, r"stop_tokens must be tuple\[int, \.\.\.\], not \('a',\)"),
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("changes", "message"), WRONG_VALUES + WRONG_TYPES, ids=lambda x: x if isinstance(x, str) else ""
)
def test_a_mistake_is_named(family: type[ModelConfig], changes: Fields, message: str) -> None:
    with pytest.raises(ValueError, match=f"{family.__name__}: .*{message}"):
        family(**{"vocab_size": 5} | changes)


@pytest.mark.parametrize(("family", "changes", "message"), [
    (RecurrentDepthConfig, {"n_core": 0}, "n_core must be at least 1, not 0"),
    (RecurrentDepthConfig, {"n_prelude": -1}, "n_prelude must be at least 0, not -1"),
    (RecurrentDepthConfig, {"n_coda": -2}, "n_coda must be at least 0, not -2"),
    (RecurrentDepthConfig, {"mean_iterations": 0}, "mean_iterations must be at least 1, not 0"),
    (RecurrentDepthConfig, {"mean_iterations": 8.5}, "mean_iterations must be int, not 8.5"),
    (RecurrentDepthConfig, {"injection": "gate"}, "injection must be one of 'concat', 'add', 'diagonal', not 'gate'"),
    (RecurrentDepthConfig, {"injection": ["add"]}, r"injection must be str, not \['add'\]"),
    (TransformerConfig, {"n_layers": 0}, "n_layers must be at least 1, not 0"),
])  # fmt: skip
def test_a_mistake_in_the_fields_of_a_family_is_named(family: type[ModelConfig], changes: Fields, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        family(**{"vocab_size": 5} | changes)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_is_a_word_of_a_registry(family: type[ModelConfig]) -> None:
    """No field is free text: each has a registry, whose words a wrong one is told."""
    hints = get_type_hints(family)
    assert {f.name for f in fields(family) if hints[f.name] is str} == set(family.choices)
    for name, registry in family.choices.items():
        known = ", ".join(map(repr, registry))
        with pytest.raises(ValueError, match=f"{name} must be one of {known}, not 'other'"):
            family(**{"vocab_size": 5, name: "other"})


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(ValueError, match=r"d_model 10 is not divisible by n_heads 4; .*stop_tokens.*; n_core must be"):
        RecurrentDepthConfig(vocab_size=5, d_model=10, stop_tokens=(7,), n_core=0)


def test_positions_none_allows_an_odd_head_width() -> None:
    assert RecurrentDepthConfig(vocab_size=5, d_model=12, positions="none").head_dim == 3


def test_a_whole_number_passes_for_a_float() -> None:
    assert RecurrentDepthConfig(vocab_size=5, rope_base=10_000).rope_base == 10_000


@pytest.mark.parametrize("family", FAMILIES)
def test_depth_is_no_shape(family: type[ModelConfig]) -> None:
    """The iteration count of a call is in no configuration; only the mean of training is, for the initialisation."""
    assert "iterations" not in {f.name for f in fields(family)}
