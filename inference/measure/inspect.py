"""What a checkpoint folder holds: its shape, its cost by iteration count, where it comes from, what was measured."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mull.checkpoints.card import cell
from mull.checkpoints.efforts import FILE, read_efforts
from mull.checkpoints.files import damaged, is_there, read_json, read_yaml, shown
from mull.checkpoints.names import folder_of
from mull.checkpoints.quantities import Row, cells, is_text, reference_of, si
from mull.checkpoints.store import DEPTH, TRAINING, verify
from mull.models import ModelConfig
from mull.models.config import Capacity
from mull.models.loop import counts_around


def inspection(path: str | Path, iterations: list[int] | None = None, capacity: Capacity | None = None) -> str:
    """A page of text about a checkpoint folder, after everything that answers come from has been read and checked.

    Args:
        path: the folder.
        iterations: counts whose cost is shown; None means those around the trained mean.
        capacity: of the routed passes, for a model that has some; None means the config's.

    Raises:
        FileNotFoundError, ValueError: the folder is no sound one; see `store.verify`.
    """
    folder = folder_of(path)
    config, found = verify(folder)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e6
    sections = [
        f"{folder}: {config.model_type}, {config.parameters:,} parameters, {size:.1f} MB",
        f"  weights: {found}",
        "  " + ", ".join(f"{name} {shown(value)}" for name, value in asdict(config).items()),
        "",
        *cost_lines(config, iterations, capacity),
        *effort_lines(folder),
        *training_lines(folder / TRAINING),
        *depth_lines(folder / DEPTH),
    ]
    return "\n".join(sections)


def cost_lines(config: ModelConfig, asked: list[int] | None = None, capacity: Capacity | None = None) -> list[str]:
    """FLOPs and cache bytes per token by iteration count, at 128 positions or the most that there are."""
    length = min(128, config.max_length)
    mean = config.default_iterations
    if mean is None and asked is not None:
        raise ValueError(f"a {config.model_type} has no loop: iterations={asked} is refused, leave it out")
    share = config.default_capacity if capacity is None else capacity
    if capacity is not None and config.default_capacity is None:
        raise ValueError(f"this {config.model_type} has no routed passes: capacity={capacity} is refused, leave it out")
    if asked is None and isinstance(capacity, Sequence):  # a share for each routed pass says how many there are
        asked = [len(capacity) + 1]
    counts: list[int | None] = [None] if mean is None else list[int | None](asked or counts_around(mean))
    routed = "" if share is None else f", capacity {share}"
    lines = [f"per token, at {length} positions, fp32{routed}:", "  iterations       FLOPs  cache bytes"]
    for count in counts:
        taken = capacity[: (count or 1) - 1] if isinstance(capacity, Sequence) else capacity
        flops = config.flops_per_token(count, length, taken)
        lines.append(f"  {count or '-':>10}  {si(flops):>10}  {config.cache_bytes_per_token(count):>11,}")
    return lines


def effort_lines(folder: Path) -> list[str]:
    """How long each `reasoning_effort` thinks, where the folder says so."""
    table = read_efforts(folder)
    said = ", ".join(f"{word} {count}" for word, count in (table or {}).items())
    return [] if table is None else ["", f"iterations by effort ({FILE}): {said or 'none given'}"]


def training_lines(file: Path) -> list[str]:
    """Where the weights come from. training.yaml is JSON or the trainer's YAML; only its plain lines are shown."""
    if not is_there(file):
        return ["", "training: unknown (no training.yaml)"]
    found = read_yaml(file)
    trainer, model, data = (found.get(name) or {} for name in ("trainer", "model", "data"))
    if not all(isinstance(part, dict) for part in (trainer, model, data)):
        raise damaged(file, "must hold mappings under trainer, model and data")
    said = {
        "data": describe(data),
        "steps": trainer.get("max_steps"),
        "seed": found.get("seed_everything"),
        "iterations": describe(model.get("iterations")),
        "backprop_iterations": model.get("backprop_iterations"),
        "capacity": describe(model.get("capacity")),
        "optimizer": describe(model.get("optimizer")),
    }
    return ["", "training:", *(f"  {name}: {shown(value, 400)}" for name, value in said.items() if value is not None)]


def describe(node: Any) -> str | None:
    """`Class(option=value, ...)` for a class_path entry."""
    if not isinstance(node, dict) or "class_path" not in node:
        return None if node is None else str(node)
    arguments = node.get("init_args")
    given = arguments.items() if isinstance(arguments, dict) else ()
    inner = ", ".join(f"{name}={describe(value)}" for name, value in given if value is not None)
    return f"{str(node['class_path']).rsplit('.', 1)[-1]}({inner})"


def depth_lines(file: Path) -> list[str]:
    """The measured table of depth.json."""
    if not is_there(file):
        return []
    found = read_depth(file)
    return ["", f"measured by `{shown(found['command'], 200)}`:", *aligned(found["rows"])]


def read_depth(file: Path) -> dict[str, Any]:
    """What a depth.json holds: a command, and rows of numbers. Raises ValueError for anything else."""
    found = read_json(file)
    command, rows = found.get("command"), found.get("rows")
    if not isinstance(command, str) or not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise damaged(file, "lacks a command or rows", "measure again with `mull evaluate`")
    for row in rows:
        wrong = [name for name, value in row.items() if not is_plain(value, name in ("capacity_asked", "capacity_met"))]
        if wrong:
            said = f"{shown(wrong[0], 40)} {shown(row[wrong[0]], 40)}"
            raise damaged(file, f"holds a result with {said}, which is no number", "measure again with `mull evaluate`")
    return found


def is_plain(value: Any, listed: bool) -> bool:
    """Whether this may stand in a result: null, a number, or a list of numbers where there is one for each pass."""
    if listed and value is not None:
        return isinstance(value, list) and all(each is not None and is_plain(each, False) for each in value)
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300)


def aligned(rows: Sequence[Row]) -> list[str]:
    """Results in columns, written as quantities.py says; columns that are empty throughout are left out."""
    text, reference = is_text(rows), reference_of(rows)
    written = [{"difficulty": cell(row.get("difficulty")), **cells(row, text, reference)} for row in rows]
    names = [name for name in (written[0] if written else ()) if any(row[name] for row in written)]
    widths = {name: max(len(name), *(len(row[name]) for row in written)) for name in names}
    lines = [{name: name for name in names}, *written]
    return ["  " + "  ".join(f"{line[name]:>{widths[name]}}" for name in names) for line in lines]
