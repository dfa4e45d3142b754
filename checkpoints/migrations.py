"""Configurations and tensors that an earlier version wrote, as this version has them: old folders load, and nothing
else is guessed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mull.models.rules import RULES

LATER: tuple[dict[str, Any], ...] = (  # options that came later, together, at the values that do nothing
    {"window": 0, "window_heads": 0, "convolution": "none", "kernel": 4, "residual_scale": 1.0},  # of every family
    {"causal": True},
    {"board": False},
    {"value_head": False},
)
LATER_OF: dict[str, tuple[dict[str, Any], ...]] = {  # the same, of one family
    "recurrent_depth": ({"state_noise": 0.0}, {"answer_feedback": False}),
}


def upgraded(model_type: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of config.json by their present names."""
    if model_type == "recurrent_depth" and fields.keys().isdisjoint(LATER[0]):
        fields = {"damping": 1.0, **fields}
    for together in LATER + LATER_OF.get(model_type, ()):
        if fields.keys().isdisjoint(together):
            fields = {**together, **fields}
    if model_type == "inner_thinking" and "residual_thinking" in fields and "rule" not in fields:
        return with_rule(fields)
    return dict(fields)


def upgraded_shapes(
    found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """Shapes of stored tensors as this version has them. Thresholds of routers had one axis less, (passes, capacities);
    the layers themselves repeat them along the axis of earlier capacities when they load them."""

    def older(name: str, shape: tuple[int, ...]) -> bool:
        now = wanted.get(name, ())
        return name.endswith(".thresholds") and len(now) == 3 and shape == (now[0], now[2])

    return {name: wanted[name] if older(name, shape) else shape for name, shape in found.items()}


def with_rule(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Before `rule` there were four switches, of which some combinations meant the same."""
    new = dict(fields)
    old = {name: new.pop(name, None) for name in ("skipped", "weighting", "residual_thinking", "accumulated")}
    if old["residual_thinking"] and old["accumulated"] == "update":
        new["rule"] = "update"
    elif old["weighting"] == "symmetric":
        new["rule"] = "paper_symmetric" if old["residual_thinking"] else "loop_symmetric"
    elif old["residual_thinking"]:
        new["rule"] = "paper_literal" if old["skipped"] == "literal" else "paper"
    else:
        new["rule"] = "loop"
    unweighted = old["skipped"] == "literal" and new["rule"] in ("paper_symmetric", "loop", "loop_symmetric")
    passes = new.get("mean_iterations")
    if unweighted and new.get("step_start") is None and isinstance(passes, int):
        new["step_start"] = RULES[new["rule"]].start(False, passes)  # where phi started then
    return new
