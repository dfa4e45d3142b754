"""What all logs of a run are told beside its metrics: the configuration at the start, the measurements at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import Logger

from mull.inference.measure.results import Result
from mull.training.boards import TensorBoardLog, WandbLog
from mull.training.log import MetricsLog

Choice = Literal["csv", "tensorboard", "wandb"]
MEASURES = ("accuracy", "loss", "bits_per_byte")  # of a result, as they are logged


def make_loggers(choice: Choice, folder: Path, name: str, group: str) -> list[Logger]:
    """The logs of a run below a folder: metrics.csv always, and the board that was chosen.

    Args:
        choice: the option `logger`.
        folder: folder of the trainer's files.
        name: name of the run.
        group: name of its configuration.
    """
    record = MetricsLog(folder)
    if choice == "tensorboard":
        return [record, TensorBoardLog(folder)]
    return [record, WandbLog(folder, name, group)] if choice == "wandb" else [record]


def begin(loggers: Sequence[Logger], step: int, configuration: Mapping[str, Any], measures: Sequence[str]) -> None:
    """Let all logs go on at an optimizer step, and tell them the configuration.

    Args:
        loggers: the trainer's, of which those of other makers get the configuration as Lightning has it.
        step: optimizer steps that are done.
        configuration: the resolved configuration.
        measures: names of what is measured at the end.
    """
    fields = flat(configuration)
    for logger in loggers:
        if hasattr(logger, "begin"):
            logger.begin(step)
        if hasattr(logger, "describe"):
            logger.describe(fields, measures)
        elif not isinstance(logger, MetricsLog):
            logger.log_hyperparams(fields)


def conclude(loggers: Sequence[Logger], results: Sequence[Result], step: int) -> None:
    """Log what was measured after the last optimizer step."""
    values = named(results)
    for logger in loggers:
        if hasattr(logger, "conclude"):
            logger.conclude(values, step)
        else:
            logger.log_metrics(values, step)
            logger.save()


def close(loggers: Sequence[Logger]) -> None:
    """End what logs hold open beyond a training."""
    for logger in loggers:
        if hasattr(logger, "close"):
            logger.close()


def named(results: Sequence[Result]) -> dict[str, float]:
    """The values of results by name: `depth/accuracy@8`, or `depth/accuracy@8/16` where several difficulties are.

    Without a loop there is no count: `depth/accuracy`.
    """
    several = len({result.difficulty for result in results}) > 1
    found: dict[str, float] = {}
    for result in results:
        for measure in MEASURES:
            value = getattr(result, measure)
            if value is not None:
                found[label(measure, result.iterations, result.difficulty if several else None)] = value
    return found


def label(measure: str, count: int | None, difficulty: int | None) -> str:
    """The name of one value."""
    return (
        f"depth/{measure}" + ("" if count is None else f"@{count}") + ("" if difficulty is None else f"/{difficulty}")
    )


def flat(configuration: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """A nested configuration as one value a field, `model.iterations.init_args.mean`; lists are numbered."""
    found: dict[str, Any] = {}
    for name, value in configuration.items():
        inner = {str(number): each for number, each in enumerate(value)} if isinstance(value, list) else value
        if isinstance(inner, Mapping) and inner:
            found |= flat(inner, f"{path}{name}.")
        else:
            found[f"{path}{name}"] = value if isinstance(value, bool | int | float | str) else str(value)
    return found
