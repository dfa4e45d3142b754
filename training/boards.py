"""Boards where a run can be looked at, beside its metrics.csv: TensorBoard and Weights & Biases.

Both get the configuration, one value a field, and what is measured at the end, by iteration count. A run that is gone
on with is one run there too:

    TensorBoard   the same folder, trainer/logs/tensorboard; what was logged of steps that are done again is taken out
                  of its files first
    W&B           the same run, by the id in trainer/wandb.txt; rows are sent when the state that comes after them
                  counts, since what was sent cannot be taken back
"""

from __future__ import annotations

import os
import re
import struct
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from mull.checkpoints.replacing import replace_all

EVENTS = "events.out.tfevents.*"


class TensorBoardLog(TensorBoardLogger):
    """A folder for TensorBoard.

    Args:
        folder: folder of the trainer's files.

    Raises:
        ValueError: there is no package that writes such files.
    """

    def __init__(self, folder: Path) -> None:
        try:
            super().__init__(
                folder,
                name="logs",
                version="tensorboard",
                default_hp_metric=False,
                filename_suffix=own_suffix(),
            )
        except ModuleNotFoundError as error:
            raise ValueError(
                "logger: tensorboard needs a package that writes its files: pip install tensorboardX, or leave it out"
            ) from error

    @rank_zero_only
    def begin(self, step: int) -> None:
        """Go on at an optimizer step: of what is on disk, the events of the steps before it stay."""
        folder = Path(self.log_dir)
        for file in sorted(folder.glob(EVENTS)):
            kept = b"".join(record for record, of in events(file.read_bytes()) if of < step)
            if kept:
                replace_all(folder, {file.name: kept})
            else:
                file.unlink()

    @rank_zero_only
    def describe(self, configuration: Mapping[str, Any], measures: Iterable[str]) -> None:
        """Add the run to the table of configurations, once.

        Args:
            configuration: its fields.
            measures: names of the values that are shown beside them.
        """
        if any(Path(self.log_dir).glob(EVENTS)):
            return
        self.hparams.update(configuration)  # of which save() makes hparams.yaml
        for summary in hparams_of(configuration, map(tag, measures))[:2]:
            self.experiment._get_file_writer().add_summary(summary, 0)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add a row, by names that may stand in its files."""
        super().log_metrics({tag(name): value for name, value in metrics.items()}, step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the file, if there is one; what is logged afterwards begins another, under a name of its own."""
        if self._experiment is None:
            return
        super().finalize(status)
        self._experiment, self._kwargs["filename_suffix"] = None, own_suffix()

    @rank_zero_only
    def conclude(self, results: Mapping[str, float], step: int) -> None:
        """Add what was measured, and say that the run has ended well."""
        self.log_metrics(results, step)
        self.experiment._get_file_writer().add_summary(hparams_of({}, results)[2], step)
        self.finalize("success")


def own_suffix() -> str:
    """Of a file's name, which else says its second alone: what was begun in the same one would be overwritten. Names
    are read in their order, so they go by the time."""
    return f".{time.time_ns()}"


def tag(name: str) -> str:
    """The name of a value in TensorBoard, `val/loss_8` for `val/loss@8`: packages replace what is no letter as well."""
    return re.sub(r"[^-/\w.]", "_", name)


def hparams_of(configuration: Mapping[str, Any], measures: Iterable[str]) -> Any:
    """TensorBoard's summaries of an experiment, of the start of a run and of its end."""
    try:
        from torch.utils.tensorboard.summary import hparams
    except ImportError:
        from tensorboardX.summary import hparams  # type: ignore[no-redef]
    return hparams(dict(configuration), dict.fromkeys(measures, 0.0))


def events(data: bytes) -> Iterator[tuple[bytes, int]]:
    """The records of an event file with their steps; one that was being written when its process ended is left out.

    A record is a length in eight bytes, four bytes of a sum, the event, and again four bytes. An event begins with its
    time, a field of nine bytes, and with its step, a field of number 2, if that is not 0.
    """
    place = 0
    while place + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, place)
        end = place + 12 + length + 4
        if end > len(data):
            return
        event, step = data[place + 12 : end - 4], 0
        if event[9:10] == b"\x10":
            for shift, byte in enumerate(event[10:20]):
                step |= (byte & 0x7F) << (7 * shift)
                if byte < 0x80:
                    break
        yield data[place:end], step
        place = end


class WandbLog(WandbLogger):
    """A run in Weights & Biases, offline unless WANDB_MODE says otherwise.

    Args:
        folder: folder of the trainer's files.
        name: name of the run.
        group: what it is grouped by, the name of its configuration.
    """

    def __init__(self, folder: Path, name: str, group: str) -> None:
        os.environ.setdefault("WANDB_MODE", "offline")
        self.known = folder / "wandb.txt"
        known = self.known.read_text().strip() if self.known.exists() else ""
        super().__init__(
            name=name,
            group=group or None,
            project="mull",
            save_dir=folder,
            id=known or uuid.uuid4().hex[:8],
            resume="allow",
        )
        self.waiting: list[tuple[dict[str, Any], int | None]] = []

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None and not self.known.exists():
            replace_all(self.known.parent, {self.known.name: f"{self._id}\n".encode()})
        return WandbLogger.experiment.fget(self)  # type: ignore[attr-defined]

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Remember a row until the state after it counts."""
        self.waiting.append((dict(metrics), step))

    @rank_zero_only
    def commit(self) -> None:
        """Send the rows, each under its optimizer step."""
        for metrics, step in self.waiting:
            self.experiment.log({**metrics, "trainer/global_step": step}, step=step)
        self.waiting = []

    @rank_zero_only
    def describe(self, configuration: Mapping[str, Any], measures: Iterable[str]) -> None:  # noqa: ARG002 (as a board's)
        """Give the run its configuration."""
        self.experiment.config.update(dict(configuration), allow_val_change=True)

    @rank_zero_only
    def conclude(self, results: Mapping[str, float], step: int) -> None:
        """Send what was measured."""
        self.log_metrics(results, step)
        self.commit()

    @rank_zero_only
    def close(self) -> None:
        """End the record of this start, so that the next run of this process has its own."""
        if self._experiment is not None:
            self._experiment.finish()
            self._experiment = None
