"""What tasks of the harness said at several iteration counts: one table, one summary, and the harness's own results."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mull.checkpoints.replacing import replace_all

if TYPE_CHECKING:
    from rich.table import Table

ByCount = Mapping[int | None, Mapping[str, Any]]  # results of the harness by iteration count
Row = dict[str, Any]
BESIDE = 3  # counts whose values fit on a narrow screen beside their errors


def rows_of(found: ByCount) -> list[Row]:
    """A row for each task or group, metric and count, as plain values; None for what is not known or no number."""
    return [
        {
            "task": task,
            "metric": metric,
            "filter": kept,
            "iterations": count,
            "value": number(value),
            "stderr": number(values.get(f"{metric}_stderr,{kept}")),
            "higher_is_better": results["higher_is_better"].get(task, {}).get(metric),
            "examples": values.get("sample_len"),
            "num_fewshot": results["n-shot"].get(task),
        }
        for count, results in found.items()
        for task, values in {**results["results"], **results.get("groups", {})}.items()
        for metric, kept, value in metrics_of(values)
    ]


def metrics_of(values: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
    """Metric, filter and value out of the harness's keys, `acc,none`, the standard errors left out."""
    pairs = [(*key.rpartition(",")[::2], value) for key, value in values.items() if "," in key]
    return [(metric, kept, value) for metric, kept, value in pairs if not metric.endswith("_stderr")]


def number(value: Any) -> float | None:
    """A metric of lm-eval as a float; None for a text, and for what is infinite or not a number."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def table_of(rows: Sequence[Row], title: str, notes: Sequence[str] = ()) -> Table:
    """Tasks and metrics down, iteration counts across, a standard error behind each value."""
    from rich.table import Table

    counts = list(dict.fromkeys(row["iterations"] for row in rows))
    across = "" if counts == [None] else "iterations across, "
    notes = [f"{across}± one standard error", *notes]
    table = Table(title=title, caption="\n".join(notes), pad_edge=False)
    table.add_column("task", no_wrap=True)
    table.add_column("metric", no_wrap=True)
    table.add_column("n", justify="right", no_wrap=True)
    for count in counts:
        table.add_column("value" if count is None else str(count), justify="right")
    gap = "" if len(counts) <= BESIDE else " "  # where a cell may be broken
    by_line: dict[tuple[str, str, str], dict[int | None, Row]] = {}
    for row in rows:
        by_line.setdefault((row["task"], row["metric"], row["filter"]), {})[row["iterations"]] = row
    metrics = Counter((task, metric) for task, metric, _ in by_line)
    for (task, metric, kept), found in by_line.items():
        name = metric if metrics[task, metric] == 1 else f"{metric} ({kept})"
        examples = next(iter(found.values()))["examples"]
        table.add_row(
            task, name, "" if examples is None else str(examples), *(cell(found.get(at), gap) for at in counts)
        )
    return table


def cell(row: Row | None, gap: str) -> str:
    """A value with its standard error as text, to three digits, parted by `gap`; empty where there is no value."""
    if row is None or row["value"] is None:
        return ""
    return f"{row['value']:.3f}" + ("" if row["stderr"] is None else f"{gap}±{row['stderr']:.3f}")


def write_results(folder: Path, found: ByCount, summary: Mapping[str, Any]) -> None:
    """`results_16.json` of each count as the harness gives it, and summary.json: all files or none."""
    files = {f"results{'' if count is None else f'_{count}'}.json": dumped(results) for count, results in found.items()}
    replace_all(folder, {**files, "summary.json": dumped(summary)})


def dumped(value: Any) -> bytes:
    """A value as indented JSON in UTF-8, with a line break at its end."""
    return (json.dumps(value, indent=2, default=plain) + "\n").encode()


def plain(value: Any) -> Any:
    """A value that JSON has no word for: numbers of numpy as numbers, everything else as its text."""
    return value.item() if hasattr(value, "item") else str(value)
