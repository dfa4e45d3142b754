"""Several processes of one run, on the CPU: they train as one, stop as one, and none is left behind."""

import os
import signal
import sys
import time
from contextlib import nullcontext

import pytest

from mull.training import run as run_module
from mull.training.callbacks import Throughput
from mull.training.companions import FIRST, end_with_first
from mull.training.data import TaskData
from mull.training.run import train
from mull.training.states import LAST, read_state

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on workers, epochs and batch sizes


@pytest.fixture
def two(reliability, tmp_path, monkeypatch):
    """The arguments that train a run of two processes, and what it leaves without a stop."""
    monkeypatch.setattr(reliability, "PATIENCE", 60.0)
    reliability.adopt_orphans()
    args = reliability.arguments(tmp_path, reliability.VARIANTS["two processes"])
    assert reliability.attempt(args, tmp_path / "whole") == 0
    return args, reliability.outcome(tmp_path / "whole")


def test_two_processes_are_killed_and_go_on(two, reliability, tmp_path):
    """Guards runs of two processes: the first is ended before every eighteenth operation on files, the second follows,
    and going on ends in the same bits. (All operations and random kills: benchmarks/reliability.py.)"""
    args, expected = two
    assert reliability.killed_everywhere(args, tmp_path / "out", step=18) >= 3
    assert reliability.outcome(tmp_path / "out") == expected


@pytest.mark.parametrize("started_by", ["a process that has ended", "one that ends"])
def test_a_companion_does_not_outlive_the_first(reliability, tmp_path, monkeypatch, started_by):
    """Guards processes that wait for the others: one whose first process is gone ends, with its status 1."""
    if started_by == "one that ends":
        monkeypatch.delenv(FIRST, raising=False)
    else:
        monkeypatch.setenv(FIRST, "1999999999")
    reliability.adopt_orphans()

    def first():
        if started_by == "one that ends" and os.fork():
            time.sleep(0.2)
            os._exit(0)
        end_with_first()
        time.sleep(60)  # longer than several looks

    assert reliability.in_child(first, tmp_path, several=True) == 1  # 0 if it is not ended


@pytest.mark.parametrize("broken", [False, True])
def test_a_run_that_is_over_has_no_companions(reliability, tmp_path, monkeypatch, broken):
    """Guards a program that has trained and then starts a run of several processes: they are not told its number."""
    monkeypatch.delenv(FIRST, raising=False)
    told = []

    def alone(*_):
        told.append(os.environ[FIRST])
        if broken:
            raise ValueError

    monkeypatch.setattr(run_module, "train_alone", alone)
    with pytest.raises(ValueError) if broken else nullcontext():
        train([*reliability.arguments(tmp_path, {}), str(tmp_path / "out")])
    assert told == [str(os.getpid())] and FIRST not in os.environ


@pytest.mark.parametrize(("rank", "step"), [(1, 3), (0, 1)])
def test_a_signal_to_one_ends_both(reliability, tmp_path, rank, step):
    """Guards SIGTERM to one process alone, in a step of the second and while training starts in the first: both stop
    after the same step, whose state is saved."""
    args = reliability.arguments(tmp_path, reliability.VARIANTS["two processes"])
    folder = tmp_path / "out"
    ends, loads = Throughput.on_train_batch_end, TaskData.train_dataloader

    def acting(self, trainer, *rest):
        ends(self, trainer, *rest)
        if rank == trainer.global_rank == 1 and trainer.global_step == step:
            signal.raise_signal(signal.SIGTERM)

    def loading(self):
        if rank == self.trainer.global_rank == 0:
            signal.raise_signal(signal.SIGTERM)
        return loads(self)

    def work():
        with (
            pytest.MonkeyPatch.context() as patch,
            open(tmp_path / f"said-{os.environ.get('LOCAL_RANK')}", "w") as said,
        ):
            patch.setattr(sys, "stdout", said)
            patch.setattr(Throughput, "on_train_batch_end", acting)
            patch.setattr(TaskData, "train_dataloader", loading)
            train([*args, str(folder)])

    reliability.adopt_orphans()
    assert reliability.in_child(work, folder, several=True) == 128 + signal.SIGTERM
    told = [(tmp_path / f"said-{rank}").read_text().splitlines() for rank in (None, 1)]
    assert told[0][-1] == f"SIGTERM: {folder} stopped, step {step} is saved; the same line goes on" and told[1] == []
    assert read_state(folder / "trainer" / LAST)["global_step"] == step
