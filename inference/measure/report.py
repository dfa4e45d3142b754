"""Results of an evaluation handed over: files first, then what is printed, so that a reader who has gone costs none."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mull.inference.measure.plots import write_plot
from mull.inference.measure.results import Result, to_csv, to_json
from mull.inference.measure.table import print_table


def report(results: Sequence[Result], name: str, output: str | None, as_json: bool, **picture: Any) -> None:
    """Write evaluation.json, .csv and .png into a folder, and print one JSON object or the tables.

    Args:
        results: of an evaluation.
        name: of what was measured, the title of the tables.
        output: a folder that is there; None writes nothing.
        as_json: print JSON instead of tables.
        picture: options of `plots.draw`; there is no picture of a model without a loop.
    """
    if output is not None:
        folder = Path(output)
        (folder / "evaluation.json").write_text(to_json(results) + "\n")
        (folder / "evaluation.csv").write_text(to_csv(results))
        if any(result.iterations is not None for result in results):  # a picture against iterations needs some
            write_plot(results, folder / "evaluation.png", **picture)
    if as_json:
        print(to_json(results))
        return
    from rich.markup import escape

    print_table(results, title=escape(name))
