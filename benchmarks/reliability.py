"""How often a run or a save can be killed: every file operation, and random moments, in several kinds of runs.

    python benchmarks/reliability.py [--kills 50] [--runs plain muon ...]

Each run is tiny (6 optimizer steps, a state every 2). It is trained once without a stop; then again in child processes
that are killed, each of which goes on where the one before was killed: child n before its n-th operation on files, and
by SIGKILL at random moments. In one kind of run a fresh run is killed before each operation, too. At the end its
weights, its log and its measurement must be those of the run without a stop, bit for bit. Saving over a checkpoint
folder is killed before every operation as well: what loads afterwards must be all old or all new.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import csv
import ctypes
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from safetensors.torch import load_file

import mull
from mull.training.data import TaskData

KILLED = 99  # exit status of a child that was stopped before a file operation
BASE = yaml.safe_load(
    """
seed_everything: 0
save_every: 2
threads: 1
trainer:
  {max_steps: 6, accelerator: cpu, val_check_interval: 3, log_every_n_steps: 1, enable_progress_bar: false}
model:
  network:
    class_path: mull.RecurrentDepthTransformer
    init_args:
      config: {d_model: 16, n_heads: 2, d_ff: 16, mean_iterations: 2, max_length: 16}
  iterations: {class_path: mull.training.iterations.LogNormalPoisson, init_args: {mean: 3, maximum: 8}}
  backprop_iterations: 2
  warmup_steps: 2
  decay_share: 0.5
data:
  class_path: mull.training.data.TaskData
  init_args:
    task: {class_path: mull.training.data.Parity, init_args: {length: 9}}
    difficulty: [7, 9]
    batch_size: 3
    validation_examples: 6
"""
)
EMA = {"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging", "init_args": {"decay": 0.5}}
THINKING = {
    "class_path": "mull.InnerThinkingTransformer",
    "init_args": {"config": {"d_model": 16, "n_heads": 2, "d_ff": 16, "n_layers": 2, "max_length": 16}},
}
STOPPING = {
    "class_path": "lightning.pytorch.callbacks.EarlyStopping",
    "init_args": {"monitor": "val/loss", "patience": 2, "min_delta": 1e9},  # the first validation is the best of all
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulation": {"trainer": {"accumulate_grad_batches": 2}},
    "average": {"trainer": {"callbacks": [EMA]}},
    "accumulation, average": {"trainer": {"accumulate_grad_batches": 2, "callbacks": [EMA]}},
    "muon": {"model": {"optimizer": {"class_path": "mull.training.optimizers.MuonAdamW"}}},
    "two processes": {"trainer": {"devices": 2, "strategy": "ddp"}},
    "fsdp2": {"trainer": {"devices": 2, "strategy": "fsdp2"}},
    "early stopping": {"trainer": {"callbacks": [STOPPING], "max_steps": 40}, "save_every": 3},
    "inner thinking": {"model": {"network": THINKING, "backprop_iterations": None}},
}
VICTIMS: dict[str, Sequence[int | None]] = dict.fromkeys(
    ["two processes", "fsdp2"], (None, None, 0, 1)
)  # both of them, or one alone
PATIENCE = 120.0  # seconds in which a process must end whose companion was killed
EACH = "accumulation, average"  # the variant of which every operation is met by a fresh run


def arguments(folder: Path, variant: dict[str, Any]) -> list[str]:
    """Write the configuration of a variant; return the arguments that train it, but for the folder after --output."""
    config = copy.deepcopy(BASE)
    for section, values in variant.items():
        config[section] = {**config[section], **values} if isinstance(values, dict) else values
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(config))
    return ["--config", str(file), "--output"]


def train(arguments: list[str]) -> None:
    """Train in this process, without words, and measure on four examples."""
    from mull.training.run import train as run

    warnings.simplefilter("ignore")
    real = TaskData.evaluation_batches
    TaskData.evaluation_batches = lambda self, **_: real(self, examples=4)  # type: ignore[method-assign,assignment]
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            run(arguments)
    finally:
        TaskData.evaluation_batches = real  # type: ignore[method-assign]


class Operations:
    """Counts what this process does to the files below a folder, and ends it before a certain operation.

    Operations are those that Python reports of itself (opening to write, renaming, removing, making folders, links),
    and os.fsync. They cannot be watched twice in one process.
    """

    NAMES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate")

    def __init__(self, folder: Path, stop_before: int | None) -> None:
        self.folder, self.stop_before, self.count = str(folder), stop_before, 0
        self.process = os.getpid()  # not a fork of it
        self.sync = os.fsync
        os.fsync = self.fsync
        sys.addaudithook(self.watch)

    def watch(self, event: str, values: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(values[2], int) and values[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if (event in self.NAMES or writes) and self.folder in str(values[0]):
            self.operation()

    def fsync(self, handle: int) -> None:
        self.operation()
        self.sync(handle)

    def operation(self) -> None:
        if self.count == self.stop_before and os.getpid() == self.process:
            os._exit(KILLED)
        self.count += 1


class Companion:
    """A further process of a run, as Lightning's launcher knows it; a fork, which has no need to import torch anew.

    It begins with the work of its parent, under its own number, and without its parent's open files and locks.
    """

    def __init__(self, number: int, work: Callable[[], Any]) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os.closerange(3, 1000)
            os.environ["LOCAL_RANK"] = str(number)
            do(work)

    def poll(self) -> None:
        if self.returncode is None:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if found else None

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)


def launch_by_forks(work: Callable[[], Any]) -> None:
    """Let Lightning's launcher, which would start this command line anew, make companions."""

    def launch(launcher: Any) -> None:
        place = launcher.cluster_environment
        os.environ |= {"MASTER_ADDR": place.main_address, "MASTER_PORT": str(place.main_port)}
        os.environ |= {"NODE_RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(launcher.num_processes)}
        launcher.procs = [Companion(number, work) for number in range(1, launcher.num_processes)]

    _SubprocessScriptLauncher._call_children_scripts = launch  # type: ignore[method-assign]


def do(work: Callable[[], Any]) -> NoReturn:
    """Do the work, and end this process with its exit status."""
    status = 1
    try:
        work()
        status = 0
    except SystemExit as error:
        status = int(error.code or 0)
    except BaseException:  # noqa: BLE001 (whatever ends the work is shown, and the child ends)
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


def in_child(
    work: Callable[[], Any],
    folder: Path,
    stop_before: int | None = None,
    after: float | None = None,
    alone: int | None = None,
    several: bool = False,
) -> int:
    """Do some work in a child process; return its exit status, negative where a signal has ended it.

    Args:
        work: what it does.
        folder: where its file operations are counted.
        stop_before: number of the operation before which the child ends, from 0; None: none.
        after: seconds until SIGKILL is sent; None: never.
        alone: number of the only process that is sent it, where several train together; None: all are.
        several: the work has further processes, which must end by themselves when the child or one of them has ended.
    """
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        if several:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what one says of another that was killed
            launch_by_forks(work)
        if stop_before is not None:
            Operations(folder, stop_before)
        do(work)
    with contextlib.suppress(OSError):  # it has done so itself
        os.setpgid(child, child)
    if after is not None:
        time.sleep(after)
        others = Path(f"/proc/{child}/task/{child}/children").read_text().split() if alone else []
        if alone is None or (alone and not others):
            os.killpg(child, signal.SIGKILL)
        else:
            os.kill(int(others[alone - 1]) if alone else child, signal.SIGKILL)
    if not several:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    statuses = statuses_of_group(child)
    ended = [status for status in statuses if status in (-signal.SIGKILL, KILLED)]
    return ended[0] if ended else max(statuses, key=abs)


def statuses_of_group(group: int) -> list[int]:
    """The exit statuses of all processes of a group, which have to end within `PATIENCE` seconds of the first end."""
    statuses: list[int] = []
    ended = None
    while True:
        try:
            found, status = os.waitpid(-group, os.WNOHANG)
        except ChildProcessError:
            return statuses
        if found:
            statuses.append(os.waitstatus_to_exitcode(status))
            ended = ended or time.monotonic()
        elif ended is not None and time.monotonic() - ended > PATIENCE:
            os.killpg(group, signal.SIGKILL)
            raise AssertionError(f"a process of the run did not end within {PATIENCE:.0f} seconds of the first")
        time.sleep(0.02)


def adopt_orphans() -> None:
    """Make this process the parent of companions whose parent was killed, so that it can wait for them (Linux)."""
    PR_SET_CHILD_SUBREAPER = 36
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def attempt(arguments: list[str], folder: Path, **how: Any) -> int:
    """Train in as many child processes as the configuration names devices; how they end: see `in_child`."""
    devices = yaml.safe_load(Path(arguments[1]).read_text())["trainer"].get("devices", 1)
    return in_child(lambda: train([*arguments, str(folder)]), folder, several=devices > 1, **how)


def outcome(folder: Path) -> dict[str, Any]:
    """What a finished run has left: weights, log and measurement, without the clock's share of them."""
    with open(folder / "trainer" / "logs" / "version_0" / "metrics.csv", newline="") as file:
        log = [
            {name: value for name, value in row.items() if name not in ("epoch", "train/tokens_per_second")}
            for row in csv.DictReader(file)
        ]
    rows = [{**row, "seconds": None} for row in json.loads((folder / "depth.json").read_text())["rows"]]
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    weights = {name: tensor.numpy().tobytes() for name, tensor in load_file(folder / "model.safetensors").items()}
    return {"weights": weights, "log": log, "depth": rows, "files": files}


def killed_everywhere(arguments: list[str], folder: Path, step: int = 1) -> int:
    """Train a run that is killed before every `step`-th file operation, one kill after the other; the kills.

    Child n goes on with what child n - 1 left and is killed before operation n of its own, so that each kill falls
    elsewhere; when a child has too few operations left to be killed, the run is finished.
    """
    kills = 0
    while True:
        status = attempt(arguments, folder, stop_before=kills * step)
        if status != KILLED:
            assert status == 0, f"the run ended with status {status} after {kills} kills"
            return kills
        kills += 1


def killed_at_each(arguments: list[str], folder: Path, expected: dict[str, Any], every: int = 1) -> int:
    """For every `every`-th file operation of a run: a fresh run, killed before it and gone on with; the kills."""
    kills = 0
    while True:
        status = attempt(arguments, folder, stop_before=kills * every)
        if status == 0:
            return kills
        assert status == KILLED, f"the run ended with status {status} before operation {kills * every}"
        assert attempt(arguments, folder) == 0
        assert outcome(folder) == expected, f"killed before operation {kills * every}"
        shutil.rmtree(folder)
        kills += 1


def killed_at_random(
    arguments: list[str],
    folder: Path,
    kills: int,
    longest: float,
    seed: int = 0,
    victims: Sequence[int | None] = (None,),
) -> int:
    """Go on with a run that is sent SIGKILL after random times, until it has ended; the kills that hit it.

    Each of the `victims` is as likely: the number of one of its processes, or None for all of them.
    """
    draw, hits = random.Random(seed), 0
    while hits < kills:
        seconds, victim = draw.uniform(0, longest), draw.choice(victims)
        status = attempt(arguments, folder, after=seconds, alone=victim)
        hits += status == -signal.SIGKILL
        if status == 0:
            return hits
        assert status == -signal.SIGKILL, f"the run ended with status {status}"
    assert attempt(arguments, folder) == 0
    return hits


def killed_saves(folder: Path) -> tuple[int, int, int]:
    """Save over a checkpoint folder, killed before each file operation; kills, old models and new ones found after."""
    config = mull.RecurrentDepthConfig(vocab_size=5, d_model=8, n_heads=2, mean_iterations=2)
    torch.manual_seed(0)
    old, new = mull.RecurrentDepthTransformer(config), mull.RecurrentDepthTransformer(config)
    found = [0, 0]
    for operation in range(1000):
        shutil.rmtree(folder, ignore_errors=True)
        mull.save(old, folder, training={"run": "old"})
        status = in_child(lambda: mull.save(new, folder), folder, stop_before=operation)
        loaded = mull.load(folder).state_dict()
        which = [all(torch.equal(loaded[name], value) for name, value in m.state_dict().items()) for m in (old, new)]
        assert sum(which) == 1 and (folder / "training.yaml").exists() == which[0], f"operation {operation}"
        mull.save(new, folder)
        assert not list(folder.glob(".*")), "leftovers"
        if status == 0:
            return operation, *found
        assert status == KILLED
        found[which.index(True)] += 1
    raise AssertionError("a save does not end")


def row(place: Path, name: str, kills: int) -> str:
    """Kill the runs of one variant in all ways; the counts of the three kinds of kills, as cells of a table."""
    variant = VARIANTS[name]
    start, whole, each, chain = arguments(place, variant), place / "whole", place / "each", place / "chain"
    began = time.perf_counter()
    assert attempt(start, whole) == 0
    longest, expected = time.perf_counter() - began, outcome(whole)
    counts = [killed_at_each(start, each, expected) if name == EACH else "", killed_everywhere(start, chain)]
    assert outcome(chain) == expected
    hits, runs = 0, 0
    while hits < kills:
        folder = place / f"random-{runs}"
        hits += killed_at_random(start, folder, kills - hits, longest, runs, VICTIMS.get(name, (None,)))
        assert outcome(folder) == expected
        runs += 1
    return f"{counts[0]} | {counts[1]} | {hits}, in {runs} runs"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="SIGKILLs at random moments, for each variant")
    parser.add_argument("--runs", nargs="+", default=list(VARIANTS), choices=VARIANTS, help="variants (all)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    adopt_orphans()
    print("| run | a fresh run for each operation | start n dies before operation n | random SIGKILLs | equal |")
    print("|---|---|---|---|---|")
    for name in options.runs:
        with tempfile.TemporaryDirectory() as place:
            print(f"| {name} | {row(Path(place), name, options.kills)} | all |", flush=True)
    with tempfile.TemporaryDirectory() as place:
        kills, old, new = killed_saves(Path(place, "model"))
    print(
        f"\nA save over a folder, killed before each of its {kills} file operations: {old} times the old, {new} the new"
    )


if __name__ == "__main__":
    main()
