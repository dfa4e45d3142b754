"""Whether a folder holds the very run that is asked for: finished, to be gone on with, or another one.

A run is what decides its weights: the decisive part of the configuration, the content of the data, the weights that it
starts from, and the version of mull. All of it is saved with every state and recorded in training.yaml, so that nothing
depends on a file beside them, on the place of the text, or on the directory that the command was typed in.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from mull.checkpoints.files import file_in_the_way, read_yaml
from mull.checkpoints.store import CONFIG, TRAINING, VERSION
from mull.training.optimizers import warmup_stable_decay
from mull.training.states import LAST, damage, read_state

# The settings of the trainer that decide what the weights become. All others only decide what a user sees of the run.
DECIDES = (
    "max_steps",
    "max_epochs",
    "min_steps",
    "min_epochs",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "precision",
    "callbacks",
    "devices",
    "num_nodes",
    "limit_train_batches",
    "overfit_batches",
    "use_distributed_sampler",
    "sync_batchnorm",
    "reload_dataloaders_every_n_epochs",
)
VALIDATES = ("val_check_interval", "check_val_every_n_epoch", "limit_val_batches")  # decide where callbacks listen
PLACES = ("paths", "tokenizer", "cache", "workers")  # where data lies, and who makes it; its key says what it is
REMEDY = "pass another --output, or remove the folder"

Identity = dict[str, Any]
Completion = Callable[[dict[str, Any]], dict[str, Any]]


class Standing(NamedTuple):
    """What a folder holds of a run.

    Attributes:
        exported: the finished checkpoint.
        state: file of the state to go on from; None if none was saved.
        step: optimizer steps that are done in that state.
        ended: that state is the last one of the run, and only the export is missing.
    """

    exported: bool = False
    state: Path | None = None
    step: int = 0
    ended: bool = False


def identity_of(resolved: dict[str, Any], data: str | None, start: str | None, processes: int = 1) -> Identity:
    """What decides the weights of a run.

    Args:
        resolved: the resolved configuration, as `TrainingCLI.resolved`.
        data: key of the content of the data; None for a data module that has none.
        start: SHA-256 of the weights that the run starts from; None for random ones.
        processes: how many train together, which `devices: auto` does not say.
    """
    configuration = decisive(resolved)
    return {
        "configuration": configuration,
        "data": data,
        "from": start,
        "processes": processes,
        "mull_version": VERSION,
    }


def decisive(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a resolved configuration that decides what the weights become."""
    given = config.get("trainer") or {}
    names = (*DECIDES, *VALIDATES) if given.get("callbacks") else DECIDES
    trainer = {name: given.get(name) for name in names}
    return {name: config.get(name) for name in ("seed_everything", "model", "data")} | {"trainer": trainer}


def check_place(folder: Path) -> None:
    """Raise a ValueError if a run cannot be in that folder, whatever run it is. Nothing is written."""
    blocking = file_in_the_way(folder)
    if blocking is not None:
        raise ValueError(f"{blocking} is a file; name a folder with --output")
    stated = (folder / "trainer" / LAST).exists()
    if (folder / CONFIG).exists() and not (folder / TRAINING).exists() and not stated:
        raise ValueError(f"{folder} holds a checkpoint whose training is unknown; {REMEDY}")


def standing(folder: Path, identity: Identity, complete: Completion) -> Standing:
    """What the folder holds of this very run.

    Args:
        folder: the folder, whose states have been settled.
        identity: what decides the weights of the run.
        complete: fills the fields that an older record lacks with their defaults.

    Raises:
        ValueError: the folder holds another run, or the schedule does not allow its new length.
    """
    recorded = recorded_identity(folder, complete)
    if recorded is not None and not changes(recorded, identity):
        return Standing(exported=True)
    last = folder / "trainer" / LAST
    if not last.exists():
        if recorded is not None:
            refuse(folder, changes(recorded, identity)[0])
        return Standing()
    state = read_state(last)
    known = state.get("mull", {}).get("identity")
    if known is None:
        raise ValueError(f"{last} does not say what run it belongs to; {REMEDY}")
    known = {**known, "configuration": decisive(complete(known["configuration"]))}
    version = differences(known["mull_version"], identity["mull_version"], "mull_version")
    if version:
        raise ValueError(f"{last} is of another mull ({version[0]}); install that version, or {REMEDY}")
    step, steps = state["global_step"], identity["configuration"]["trainer"]["max_steps"]
    for one in (known, recorded):
        different = [] if one is None else changes(one, identity)
        if [each for each in different if not each.startswith("trainer.max_steps:")]:
            refuse(folder, different[0])
    if changes(known, identity):
        check_length(folder, step, known["configuration"], identity["configuration"])
    finished = state["mull"]["finished"]
    stopped = finished and step < known["configuration"]["trainer"]["max_steps"]  # by a callback, or epochs were over
    return Standing(state=last, step=step, ended=stopped or (finished and step >= steps))


def refuse(folder: Path, difference: str) -> None:
    """Raise the ValueError of a folder with another run."""
    raise ValueError(f"{folder} holds a run of another configuration ({difference}); {REMEDY}")


def is_finished(folder: Path, identity: Identity, complete: Completion) -> bool:
    """Whether the folder holds the finished checkpoint of this run, whatever has become of its states."""
    recorded = recorded_identity(folder, complete)
    return recorded is not None and not changes(recorded, identity)


def has_finished(folder: Path, resolved: dict[str, Any], complete: Completion) -> bool:
    """Whether the folder holds the finished run of this configuration, whatever its data held; not so if it is to be
    longer. Raises a ValueError if it holds another run, finished or not.

    Args:
        folder: the folder.
        resolved: the configuration, as `TrainingCLI.resolved`.
        complete: that of `standing`.
    """
    check_place(folder)
    recorded, last, asked = recorded_identity(folder, complete), folder / "trainer" / LAST, decisive(resolved)
    if recorded is not None:
        there = recorded["configuration"]
    else:
        state = read_state(last) if last.exists() and damage(last) is None else {}
        known = state.get("mull", {}).get("identity")
        if known is None:
            return False
        there = decisive(complete(known["configuration"]))
    different = differences(without_places(there), without_places(asked))
    longer = asked["trainer"]["max_steps"] > there["trainer"]["max_steps"]
    others = [each for each in different if not (longer and each.startswith("trainer.max_steps:"))]
    if others:
        refuse(folder, others[0])
    return recorded is not None and not different


def recorded_identity(folder: Path, complete: Completion) -> Identity | None:
    """The identity of the run whose checkpoint the folder holds; None without one. `complete` is that of `standing`."""
    if not (folder / TRAINING).exists() or not (folder / CONFIG).exists():
        return None
    training = read_yaml(folder / TRAINING)
    more = training.get("identity") or {}
    return {"configuration": decisive(complete(decisive(training))), "data": more.get("data"), "from": more.get("from")}


def changes(one: Identity, other: Identity) -> list[str]:
    """What differs between two runs, as `field: old, now new`; versions of mull aside."""
    configurations = [one["configuration"], other["configuration"]]
    contents = [one.get("data"), other.get("data")]
    if None in contents:
        contents = [None, None]  # an old record: the places have to do
    else:
        configurations = [without_places(each) for each in configurations]
    counts = [one.get("processes"), other.get("processes")]
    if None in counts:
        counts = [None, None]  # an old record
    found = differences(counts[0], counts[1], "number of processes")
    found += differences(one.get("from"), other.get("from"), "weights of --from") + differences(*configurations)
    return found + differences(contents[0], contents[1], "content of the data")


def without_places(configuration: dict[str, Any]) -> dict[str, Any]:
    """A configuration without the places where its data lies."""
    data = dict(configuration.get("data") or {})
    given = data.get("init_args") or {}
    data["init_args"] = {name: value for name, value in given.items() if name not in PLACES}
    return {**configuration, "data": data}


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """The fields in which two nested configurations differ, as `field: old, now new`; `path` is where both stand."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = list(one) + [key for key in other if key not in one]
        return [d for key in keys for d in differences(one.get(key), other.get(key), f"{path}.{key}".strip("."))]
    return [] if one == other else [f"{path}: {one}, now {other}"]


def check_length(folder: Path, step: int, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raise a ValueError unless all steps taken so far would be the same under the new max_steps.

    Args:
        folder: folder of the run.
        step: optimizer steps taken.
        old, new: decisive configurations, which differ in trainer.max_steps.
    """
    before, now = old["trainer"]["max_steps"], new["trainer"]["max_steps"]
    warmup, share = new["model"].get("warmup_steps", 0), new["model"].get("decay_share", 0)
    said = f"trainer.max_steps: {before}, now {now}"
    if now < step:
        refuse(folder, f"{said}, and {step} steps are done")
    if min(before, now) < 1:
        refuse(folder, said)
    for done in range(step):
        if warmup_stable_decay(done, before, warmup, share) != warmup_stable_decay(done, now, warmup, share):
            raise ValueError(
                f"{folder} holds a run of another configuration ({said}): with model.decay_share {share} step {done}, "
                f"which is done, had another learning rate; finish it with {before} steps, then start a new run from "
                f"its weights: --from {folder} --output NEW"
            )
