"""The model card: README.md of a checkpoint folder, written from what is known and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from mull.models import ModelConfig


def model_card(name: str, config: ModelConfig, depth: Mapping[str, Any] | None) -> str:
    """Markdown: what the model is, how to run it, its shape, and accuracy or loss by iteration count."""
    lines = [
        f"# {name}",
        "",
        f"A `{config.model_type}` model of {config.parameters:,} parameters, made with mull. In this folder:",
        "",
        "```",
        "mull inspect .",
        "mull evaluate .",
        "```",
        "",
        "| field | value |",
        "|---|---|",
        *(f"| {field} | {value} |" for field, value in asdict(config).items()),
    ]
    if depth is not None:
        lines += ["", "## By iteration count", "", f"`{depth['command']}`", "", *depth_table(depth["rows"])]
    return "\n".join(lines) + "\n"


def depth_table(rows: list[Mapping[str, Any]]) -> list[str]:
    """Markdown rows of an evaluation; columns that are empty throughout are left out."""
    columns = [
        "difficulty",
        "iterations",
        "accuracy",
        "exact_match",
        "loss",
        "bits_per_byte",
        "capacity",
        "flops_per_token",
    ]
    used = [column for column in columns if any(row.get(column) is not None for row in rows)]
    body = ["| " + " | ".join(cell(row.get(column)) for column in used) + " |" for row in rows]
    return ["| " + " | ".join(used) + " |", "|" + "---|" * len(used), *body]


def cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
