"""The files of an evaluation: evaluation.json, evaluation.csv and evaluation.png, all of them or none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mull.checkpoints.replacing import replace_all
from mull.inference.measure.results import Result, to_csv, to_json


def write_report(folder: Path, results: Sequence[Result], picture: bytes | None) -> None:
    """Write the results of an evaluation into a folder, and their picture if there is one.

    Args:
        folder: where the files go; those of an earlier evaluation stay whole until all of these are.
        results: what was measured.
        picture: a PNG; None for a model without a loop, which has none.
    """
    files = {"evaluation.json": (to_json(results) + "\n").encode(), "evaluation.csv": to_csv(results).encode()}
    if picture is not None:
        files["evaluation.png"] = picture
    replace_all(folder, files)
