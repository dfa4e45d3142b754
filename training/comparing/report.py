"""The files of a comparison: compare.json, compare.csv and compare.png, all of them or none; and what is printed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mull.checkpoints.replacing import replace_all
from mull.inference.measure.plots import png_of
from mull.inference.measure.table import standard_output
from mull.inference.strategies import Marks
from mull.training.comparing.cells import Cell
from mull.training.comparing.envelope import envelope, owners
from mull.training.comparing.exchange import exchange
from mull.training.comparing.metrics import METRICS
from mull.training.comparing.plot import draw
from mull.training.comparing.rows import row_of, to_csv
from mull.training.comparing.table import exchange_table, metric_table, owners_table, table_of


class Report:
    """All that is said of some cells.

    Args:
        cells: at least one.
        metrics: which of METRICS.
        marks: of each folder's writer.
        settings: of the comparison.
        command: the command line.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        metrics: Sequence[str],
        marks: Mapping[str, Marks],
        settings: Mapping[str, Any],
        command: str,
    ) -> None:
        self.cells, self.settings, self.command = cells, settings, command
        self.rows = [row_of(cell) for cell in cells]
        self.best, self.owners, self.rates = envelope(cells), owners(cells), exchange(cells)
        self.metrics = {name: list(METRICS[name](cells, marks)) for name in metrics}

    @property
    def json(self) -> str:
        """Everything as one JSON object."""
        found = {
            "rows": [asdict(row) for row in self.rows],
            "exchange": [asdict(rate) for rate in self.rates],
            "envelope": [asdict(best) for best in self.best],
            "owners": [asdict(owner) for owner in self.owners],
            "metrics": self.metrics,
            "settings": dict(self.settings),
            "command": self.command,
        }
        return json.dumps(found, indent=2, allow_nan=False)

    def write(self, folder: Path, difficulty_name: str, title: str | None) -> None:
        """Write the files."""
        picture = png_of(draw(self.cells, difficulty_name, title))
        replace_all(
            folder,
            {
                "compare.json": (self.json + "\n").encode(),
                "compare.csv": to_csv(self.rows).encode(),
                "compare.png": picture,
            },
        )

    def print(self, title: str | None) -> None:
        """Print the tables."""
        console = standard_output()
        console.print(table_of(self.rows, self.best, title))
        further = [owners_table(self.owners), exchange_table(self.rates), *map(metric_table, self.metrics.values())]
        for table in further:
            if table is not None:
                console.print(table)
        for name, numbers in self.metrics.items():
            if not numbers:
                console.print(f"{name}: nothing to say; docs/compare.md says what it needs", markup=False)
