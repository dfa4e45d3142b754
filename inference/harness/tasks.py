"""Tasks of the harness by name: mull's own (configs/lm-eval), those of your folders, or those that lm-eval brings.

With --include-path only these folders and mull's own are looked through, without it lm-eval's 14,000 tasks too, if a
name is not among mull's own: that takes half a minute. Data files that a task names are looked for beside its YAML
where the working directory does not have them.

A task file may run code (`!function`), as a configuration of a test suite may: tasks are the user's own files.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import filter as matching
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.tasks import TaskManager
from lm_eval.tasks._factory import TaskFactory
from lm_eval.tasks._yaml_loader import load_yaml
from lm_eval.tasks.manager import TaskDict

from mull.checkpoints.files import one_line, shown

FOLDER = Path(__file__).parents[2] / "configs" / "lm-eval"
ABSENT = ("ConnectionError", "DatasetNotFoundError", "LocalEntryNotFoundError", "OfflineModeIsEnabled")
MOST_NAMES = 12  # shown of a list


class Beside(TaskFactory):
    """Builds tasks whose data files lie beside them."""

    def _load_full_config(self, entry: Any, overrides: dict[str, Any] | None = None) -> dict[str, Any]:
        config = super()._load_full_config(entry, overrides)
        files = (config.get("dataset_kwargs") or {}).get("data_files")
        if files and entry.yaml_path:
            config["dataset_kwargs"]["data_files"] = beside(files, entry.yaml_path.parent)
        return config


def beside(files: Any, folder: Path) -> Any:
    """Names of data files, of which those that only this folder has are looked for there."""
    if isinstance(files, dict):
        return {split: beside(names, folder) for split, names in files.items()}
    if isinstance(files, list):
        return [beside(name, folder) for name in files]
    there = folder / str(files)
    return str(there) if not Path(str(files)).exists() and there.exists() else files


def load_tasks(names: Sequence[str], folders: Sequence[str], num_fewshot: int | None = None, seed: int = 0) -> TaskDict:
    """The tasks and groups of these names.

    Args:
        names: of tasks, groups or tags, with * for any text; or YAML files.
        folders: where they are looked for beside mull's own; empty for those of lm-eval.
        num_fewshot: worked examples before each question; None is the task's own number. A task that fixes 0 keeps it.
        seed: of what tasks draw while they are loaded, and of the choice of these examples.

    Raises:
        FileNotFoundError: a folder that is not there.
        ValueError: an unknown name, a file that is no task, or data that is not here.
    """
    missing = [folder for folder in folders if not Path(folder).expanduser().is_dir()]
    if missing:
        raise FileNotFoundError(f"there is no folder {missing[0]} of tasks; --include-path names one")
    places = [FOLDER, *(Path(folder).expanduser() for folder in folders)]
    manager = manager_of(places, defaults=False)
    if not folders and any(not known(manager, name) for name in names):
        manager = manager_of(places, defaults=True)
    found: TaskDict = {"tasks": {}, "groups": {}, "group_map": {}}
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (what files of tasks use)
    for name in names:
        for each in known(manager, name) or [unknown(manager, name, places, bool(folders))]:
            loaded = load(manager, each)
            found["tasks"] |= loaded["tasks"]
            found["groups"] |= loaded.get("groups", {})
            found["group_map"] |= loaded.get("group_map", {})
    for name, task in found["tasks"].items():
        own = task.get_config("num_fewshot")
        if own is None or (num_fewshot is not None and own != 0):
            task.set_config(key="num_fewshot", value=num_fewshot or 0)
        elif num_fewshot is not None and own != num_fewshot:
            raise ValueError(
                f"task {name} fixes num_fewshot: 0, so --num-fewshot {num_fewshot} is refused: leave it out"
            )
    return found


def seed_examples(tasks: TaskDict, seed: int) -> None:
    """Let every task choose its worked examples anew, in the same way each time."""
    for task in tasks["tasks"].values():
        task.set_fewshot_seed(seed=seed)


def manager_of(places: Sequence[Path | str], defaults: bool) -> TaskManager:
    """The harness's finder of tasks in these folders, with lm-eval's own or without, which finds data files beside the
    YAML that names them."""
    manager = TaskManager(include_path=list(places), include_defaults=defaults)
    manager._factory = Beside()
    return manager


def known(manager: TaskManager, name: str) -> list[str]:
    """The tasks, groups, tags or the file that a name means; empty if there is nothing."""
    if Path(name).suffix in (".yaml", ".yml") and Path(name).expanduser().is_file():
        return [name]
    return [name] if name in manager.task_index else sorted(matching(manager.all_tasks, name))


def unknown(manager: TaskManager, name: str, places: Sequence[Path], only: bool) -> str:
    """Raise the ValueError for a name that means nothing: what is near, and which files could not be read."""
    broken = [line for place in places for line in unreadable(place)]
    names = sorted(manager.task_index)
    near = get_close_matches(name, names, 3) or (names if len(names) <= MOST_NAMES else [])
    there = f"; there is {', '.join(near)}" if near else ""
    where = f" in {', '.join(map(str, places[1:]))}" if only else ""
    rest = "without --include-path lm-eval's own tasks are found too" if only else "lm-eval ls tasks lists them"
    raise ValueError(f"there is no task {shown(name)}{where}{there}{'; ' + broken[0] if broken else ''}; {rest}")


def unreadable(place: Path) -> list[str]:
    """What is wrong with YAML files of a folder that are no tasks."""
    found = []
    for file in sorted(place.rglob("*.yaml")):
        try:
            load_yaml(file, resolve_func=False)
        except Exception as error:
            if isinstance(error, MemoryError):
                raise
            found.append(f"{file} cannot be read: {one_line(str(error), 160)}")
    return found


def load(manager: TaskManager, name: str) -> TaskDict:
    """One task, group or tag, with its data. Whatever its file raises is the file's fault: one ValueError says what."""
    try:
        return manager.load([name])
    except Exception as error:
        said = told(error)
        if type(error).__name__ in ABSENT or "OfflineMode" in said:
            raise ValueError(
                f"task {name} needs data that is neither here nor to be had ({said}): fetch it where there is a "
                "network, or give the task files of yours (dataset_path: json, dataset_kwargs: data_files)"
            ) from error
        raise ValueError(f"task {name} cannot be loaded ({said}): mend its file") from error


def told(error: Exception) -> str:
    """What an error of the harness says, on one line, with its type: some say nothing else."""
    name, said = type(error).__name__, str(error)
    return one_line(f"{name}: {said}" if said else name, 240)
