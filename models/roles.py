"""Roles of parameters: how each starts, whether it decays, and which optimizer it is for.

A module declares the roles of its parameters in a class attribute, by their names inside it:

    roles: ClassVar[dict[str, Role]] = {"out.weight": "output", "qk_bias": "vector"}

    matrix    drawn at random; decays; Muon's share
    output    the same, and writes to the residual stream: drawn smaller the deeper the model
    table     drawn at random; decays; AdamW's share also beside Muon: embedding, head, gate, router
    vector    starts where its module puts it; does not decay: norms, biases, and matrices with a start of their own

What is not declared is a table if it is an embedding, a matrix if it has two axes, and a vector otherwise, which is
right for most modules that know nothing of roles.
"""

from collections.abc import Iterator
from typing import Literal

from torch import nn

Role = Literal["matrix", "output", "table", "vector"]


def parameter_roles(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, Role]]:
    """Name, parameter and role of every parameter, in the order of `named_parameters`."""
    declared: dict[int, Role] = {}
    for module in model.modules():
        inherited = [vars(kind).get("roles", {}) for kind in reversed(type(module).__mro__)]
        for name, role in (item for roles in inherited for item in roles.items()):
            owner, _, own_name = name.rpartition(".")
            holder: object = module
            for part in filter(None, owner.split(".")):
                holder = getattr(holder, part, None)
            parameter = getattr(holder, own_name, None)  # None: this option of the module has no such parameter
            if isinstance(parameter, nn.Parameter):
                declared[id(parameter)] = role
        if isinstance(module, nn.Embedding):
            declared.setdefault(id(module.weight), "table")
    for name, parameter in model.named_parameters():
        yield name, parameter, declared.get(id(parameter), "matrix" if parameter.dim() == 2 else "vector")
