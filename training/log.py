"""The log of a run, one metrics.csv over all its interruptions: no row is lost and none is there twice."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment

from mull.checkpoints.replacing import sync_folder


class MetricsLog(CSVLogger):
    """Lightning's CSV logger with one file, logs/version_0/metrics.csv, which a resumed run goes on with.

    Args:
        folder: folder of the trainer's files.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, name="logs", version=0)
        self.resumed_at = 0

    def begin(self, step: int) -> None:
        """Go on at an optimizer step: of what is on disk, the rows of the steps before it stay."""
        self.resumed_at = step

    @property
    @rank_zero_experiment
    def experiment(self) -> Rows:
        if self._experiment is None:
            self._experiment = Rows(Path(self.log_dir) / "metrics.csv", self.resumed_at)  # type: ignore[assignment]
        return self._experiment  # type: ignore[return-value]


class Rows:
    """The rows of a metrics.csv; what the logger calls its experiment.

    Args:
        file: the file; made when the first rows are saved.
        resumed_at: rows of this optimizer step and later ones, counted from 0, are removed.
    """

    def __init__(self, file: Path, resumed_at: int) -> None:
        self.file = file
        self.columns: list[str] = []
        self.waiting: list[dict[str, Any]] = []
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.exists():
            rows = whole_rows(file)
            self.columns = list(rows[0]) if rows else []
            self.rewrite([row for row in rows if int(row["step"]) < resumed_at])

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Remember a row; tensors become numbers."""
        row = {name: value.item() if hasattr(value, "item") else value for name, value in metrics.items()}
        self.waiting.append({**row, "step": step or 0})

    def log_hparams(self, params: dict[str, Any]) -> None:
        """Nothing: the configuration of a run stands in trainer/config.yaml."""

    def save(self) -> None:
        """Bring all rows onto the disk. A new column rewrites the file, and the old one stays until that is done."""
        if not self.waiting:
            return
        new = sorted({name for row in self.waiting for name in row} - set(self.columns))
        if new:
            old = whole_rows(self.file) if self.file.exists() else []
            self.columns = sorted([*self.columns, *new])
            self.rewrite([*old, *self.waiting])
        else:
            with open(self.file, "a", newline="", encoding="utf-8") as file:
                write_rows(file, self.columns, self.waiting)
        self.waiting = []

    def rewrite(self, rows: list[dict[str, Any]]) -> None:
        """Replace the whole file."""
        beside = self.file.with_name(self.file.name + ".part")
        with open(beside, "w", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns).writeheader()
            write_rows(file, self.columns, rows)
        os.replace(beside, self.file)
        sync_folder(self.file.parent)


def write_rows(file: Any, columns: list[str], rows: Iterable[dict[str, Any]]) -> None:
    """Append rows to an open file and wait until they are on the disk."""
    csv.DictWriter(file, columns).writerows(rows)
    file.flush()
    os.fsync(file.fileno())


def whole_rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a file; a last one without its line end, which was being written when the process ended, is none.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        with open(file, newline="", encoding="utf-8") as lines:
            rows = list(csv.DictReader(line for line in lines if line.endswith("\n")))
        for number, row in enumerate(rows, start=2):
            if None in row or None in row.values() or not (row.get("step") or "").isdecimal():
                raise ValueError(f"line {number} is no row under its first line")
    except (ValueError, csv.Error) as error:
        raise ValueError(
            f"{file} is damaged ({error}): move it away, and the same line goes on without the rows in it"
        ) from error
    return rows
