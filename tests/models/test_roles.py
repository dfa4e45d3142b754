"""Roles of parameters: who says them, who inherits them, and what each parameter of the library has."""

from typing import ClassVar

import pytest
import torch
from torch import nn

from mull.models import ModelConfig, RecurrentDepthConfig, RecurrentDepthTransformer
from mull.models.families import FAMILIES
from mull.models.language_model import initialize
from mull.models.roles import Role, parameter_roles

EXPECTED: dict[str, Role] = {  # by the end of a name
    "attention.qkv.weight": "matrix",
    "attention.out.weight": "output",
    "attention.qk_bias": "vector",
    "mlp.gate_up.weight": "matrix",
    "mlp.down.weight": "output",
    "norm.weight": "vector",
    "embedding.weight": "table",
    "head.weight": "table",
    "injection.adapter.weight": "matrix",
    "injection.log_rate": "vector",
    "injection.raw_dt": "vector",
    "injection.write": "vector",
    "exit_gate.weight": "table",
    "value_head.bias": "vector",
    "exit_gate.bias": "vector",
    "router": "table",
    "step_encoding": "vector",
}


def roles(module: nn.Module) -> dict[str, Role]:
    return {name: role for name, _, role in parameter_roles(module)}


class Plain(nn.Module):
    """Knows nothing of roles."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(3, 4)
        self.mixing = nn.Linear(4, 4)
        self.kernel = nn.Parameter(torch.zeros(2, 3, 4))
        self.scale = nn.Parameter(torch.ones(()))


class Declared(Plain):
    """Says something of its own parameters, of those of a module inside it, and of one that it has not."""

    roles: ClassVar[dict[str, Role]] = {
        "kernel": "matrix", "mixing.weight": "output", "mixing.bias": "table", "table.weight": "vector",
        "absent": "matrix", "absent.weight": "matrix", "mixing.absent": "matrix",
    }  # fmt: skip


class Heir(Declared):
    """Says one thing otherwise and one thing more; the rest is inherited."""

    roles: ClassVar[dict[str, Role]] = {"mixing.weight": "table", "scale": "output"}


def test_what_is_not_declared_goes_by_its_shape() -> None:
    assert roles(Plain()) == {
        "kernel": "vector", "scale": "vector", "table.weight": "table", "mixing.weight": "matrix",
        "mixing.bias": "vector",
    }  # fmt: skip


def test_what_is_declared_wins() -> None:
    assert roles(Declared()) == {
        "kernel": "matrix", "scale": "vector", "table.weight": "vector", "mixing.weight": "output",
        "mixing.bias": "table",
    }  # fmt: skip


def test_a_subclass_inherits_what_it_does_not_say() -> None:
    assert roles(Heir()) == {
        "kernel": "matrix", "scale": "output", "table.weight": "vector", "mixing.weight": "table",
        "mixing.bias": "table",
    }  # fmt: skip


def test_declarations_hold_wherever_the_module_stands() -> None:
    """And a parameter that two modules share is told once."""
    outer = nn.ModuleDict({"first": Declared(), "list": nn.ModuleList([Heir(), Plain()])})
    outer["list"][1].mixing.weight = outer["first"].mixing.weight
    found = roles(outer)
    assert found["first.mixing.weight"] == "output" and found["list.0.mixing.weight"] == "table"
    assert "list.1.mixing.weight" not in found and found["list.1.kernel"] == "vector"


def test_a_name_may_lead_through_several_modules() -> None:
    class Far(nn.Module):
        roles: ClassVar[dict[str, Role]] = {"inner.mixing.weight": "output", "several.1.weight": "vector"}

        def __init__(self) -> None:
            super().__init__()
            self.inner = Plain()
            self.several = nn.ModuleList([nn.Linear(2, 2, bias=False) for _ in range(2)])

    found = roles(Far())
    assert (found["inner.mixing.weight"], found["several.0.weight"], found["several.1.weight"]) == (
        "output", "matrix", "vector",
    )  # fmt: skip


def test_every_parameter_of_the_library_has_its_role(config: ModelConfig) -> None:
    """At every option value; names that are not listed above are of a family that is newer than this test."""
    model = FAMILIES[config.model_type](config)
    found = list(parameter_roles(model))
    assert [name for name, _, _ in found] == [name for name, _ in model.named_parameters()]
    assert all(parameter is model.get_parameter(name) for name, parameter, _ in found)
    for name, _, role in found:
        wanted = [expected for end, expected in EXPECTED.items() if name.endswith(end)]
        assert wanted in ([role], []), name


def test_no_declared_name_is_a_slip() -> None:
    """Each leads to a parameter in some configuration of small models: a misspelt one would be ignored."""
    options = [
        {"exit_gate": True, "value_head": True, "tie_embeddings": False},
        *({"injection": word} for word in RecurrentDepthConfig.choices["injection"]),
    ]
    declared, found = set[tuple[type, str]](), set[tuple[type, str]]()
    for model_class in FAMILIES.values():
        config_class = model_class.config_class
        for changes in options if config_class is RecurrentDepthConfig else [{"value_head": True}]:
            for module in model_class(config_class(vocab_size=3, d_model=8, n_heads=2, **changes)).modules():
                said = [(kind, name) for kind in type(module).__mro__ for name in vars(kind).get("roles", {})]
                declared |= set(said)
                found |= {(kind, name) for kind, name in said if name in dict(module.named_parameters())}
    assert declared == found and len(declared) > 5


@pytest.mark.parametrize("seed", [0, 1])
def test_a_start_draws_all_but_vectors(seed: int) -> None:
    model = RecurrentDepthTransformer(RecurrentDepthConfig(vocab_size=5, d_model=8, n_heads=2, exit_gate=True))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7)
    torch.manual_seed(seed)
    initialize(model)
    assert {name: bool((p == 7).all()) for name, p, _ in parameter_roles(model)} == {
        name: role == "vector" for name, _, role in parameter_roles(model)
    }
