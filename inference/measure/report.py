"""The files of an evaluation: evaluation.json, evaluation.csv and evaluation.png, all of them or none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mull.checkpoints.replacing import replace_all
from mull.inference.measure.plots import draw, png_of
from mull.inference.measure.results import Result, to_csv, to_json


def write_report(
    folder: Path,
    results: Sequence[Result],
    title: str,
    trained_iterations: float | None,
    difficulty_name: str = "difficulty",
    chance: float | None = None,
) -> None:
    """Write the results of an evaluation into a folder, and their picture where the model has a loop.

    Args:
        folder: where the files go; those of an earlier evaluation stay whole until all of these are.
        results: what was measured.
        title: above the picture.
        trained_iterations: the count that is marked in the picture; None for a model without a loop, which has none.
        difficulty_name: what a difficulty counts, for the legend.
        chance: share of all guesses that are right, a line of the picture; None for what the results say.
    """
    files = {"evaluation.json": (to_json(results) + "\n").encode(), "evaluation.csv": to_csv(results).encode()}
    if trained_iterations is not None:  # a picture against iterations needs some
        picture = draw(
            results,
            title=title,
            trained_iterations=trained_iterations,
            difficulty_name=difficulty_name,
            chance=chance,
        )
        files["evaluation.png"] = png_of(picture)
    replace_all(folder, files)
