"""However a run is stopped, and however often, the same line goes on to what a run without a stop leaves.

Kills are real: child processes end before a certain file operation, or are sent a signal.
"""

import json
import os
import shutil
import signal
import sys

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, Timer
from safetensors.torch import load_file

from mull.cli import main
from mull.training import run as run_module
from mull.training.callbacks import DepthValidation, Throughput
from mull.training.data import TaskData
from mull.training.lock import only_run, take_by_name
from mull.training.module import TrainingModule
from mull.training.run import train
from mull.training.states import LAST

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on workers, epochs and batch sizes
EPOCHS = {"trainer": {"max_steps": -1, "max_epochs": 2, "limit_train_batches": 3}}  # the six steps, measured in epochs


class Broken(Exception):
    """What ends a run in these tests."""


@pytest.fixture(scope="module", autouse=True)
def few_examples():
    real = TaskData.evaluation_batches
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TaskData, "evaluation_batches", lambda self, **_: real(self, examples=4))
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory, reliability):
    """For each variant asked for: the arguments that train it, and what it leaves without a stop."""
    made = {}

    def make(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("whole")
            args = reliability.arguments(folder, EPOCHS if name == "epochs" else reliability.VARIANTS[name])
            train([*args, str(folder / "whole")])
            made[name] = args, reliability.outcome(folder / "whole")
        return made[name]

    return make


def at_batch(number, act, patch):
    """Do something at the end of training batch `number` of a process, counted from 1."""
    real, seen = Throughput.on_train_batch_end, []

    def acting(self, trainer, *rest):
        real(self, trainer, *rest)
        seen.append(1)
        if len(seen) == number:
            act(trainer)

    patch.setattr(Throughput, "on_train_batch_end", acting)


def fail(*_, **__):
    raise Broken


def step_of(folder):
    return torch.load(folder / "trainer" / LAST, weights_only=True)["global_step"]


@pytest.mark.parametrize("breaks", [(6, 2, 1, 3), (11, 1, 1)])
def test_breaks_between_two_steps_are_gone_on_from_whole_steps(whole, reliability, tmp_path, breaks):
    """Guards accumulation: batches are lost at a break, gradients that were being accumulated never are saved."""
    args, expected = whole("accumulation, average")
    for batches in breaks:
        with pytest.MonkeyPatch.context() as patch:
            at_batch(batches, fail, patch)
            with pytest.raises(Broken):
                train([*args, str(tmp_path / "out")])
    train([*args, str(tmp_path / "out")])
    assert reliability.outcome(tmp_path / "out") == expected


@pytest.mark.parametrize("accumulated", [1, 2])
def test_an_epoch_without_a_validation_is_no_longer_for_a_break_at_its_end(reliability, tmp_path, accumulated):
    """Guards the batches of an epoch: begun anew behind the last of them, a trainer that has nothing to validate there
    would take one more."""
    often = {"limit_train_batches": 5, "val_check_interval": None, "check_val_every_n_epoch": 2}
    variant = {"trainer": {**often, "accumulate_grad_batches": accumulated}, "save_every": 1}
    args = reliability.arguments(tmp_path, variant)
    train([*args, str(tmp_path / "whole")])
    with pytest.MonkeyPatch.context() as patch:
        at_batch(6, fail, patch)
        with pytest.raises(Broken):
            train([*args, str(tmp_path / "out")])
    train([*args, str(tmp_path / "out")])
    assert reliability.outcome(tmp_path / "out") == reliability.outcome(tmp_path / "whole")


@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_weights_of_another_type_are_not_rounded_on_their_way(reliability, tmp_path, precision, monkeypatch):
    """Guards runs in double and half precision, whose state is restored before the trainer converts the network; of one
    broken in between, and of one that another process exports. Averages of halves are kept in single precision, where
    small steps are not lost."""
    args = reliability.arguments(tmp_path, {"trainer": {"precision": precision, "callbacks": [reliability.EMA]}})
    train([*args, str(tmp_path / "whole")])
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    assert {weight.dtype for weight in whole.values()} == {torch.float64 if precision == "64-true" else torch.bfloat16}
    kept = torch.load(tmp_path / "whole" / "trainer" / LAST, weights_only=True)["state_dict"]
    assert {weight.dtype for weight in kept.values()} == {torch.float64 if precision == "64-true" else torch.float32}
    for name in ("broken", "late"):
        with monkeypatch.context() as patch:
            if name == "broken":
                at_batch(3, fail, patch)
            else:
                patch.setattr(run_module, "export", fail)
            with pytest.raises(Broken):
                train([*args, str(tmp_path / name)])
        train([*args, str(tmp_path / name)])
        found = load_file(tmp_path / name / "model.safetensors")
        assert [key for key, weight in whole.items() if not torch.equal(weight, found[key])] == [], name
        assert {weight.dtype for weight in found.values()} == {weight.dtype for weight in whole.values()}


def test_kills_before_file_operations_change_nothing(whole, reliability, tmp_path):
    """Guards the whole chain, export included: every sixth operation of a run, each child going on from the last."""
    args, expected = whole("accumulation, average")
    folder = tmp_path / "out"
    assert reliability.killed_everywhere(args, folder, step=6) >= 4
    assert reliability.outcome(folder) == expected


def test_a_state_does_not_count_before_its_validation_is_logged(whole, reliability, tmp_path, monkeypatch):
    """Guards the log: a break inside the validation of the last step, whose state is written by then, loses no row."""
    args, expected = whole("plain")
    with monkeypatch.context() as patch:
        real = DepthValidation.on_validation_epoch_start
        patch.setattr(
            DepthValidation,
            "on_validation_epoch_start",
            lambda self, trainer, module: fail() if trainer.global_step == 6 else real(self, trainer, module),
        )
        with pytest.raises(Broken):
            train([*args, str(tmp_path / "out")])
    train([*args, str(tmp_path / "out")])
    assert reliability.outcome(tmp_path / "out") == expected


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_state_of_its_step(whole, reliability, tmp_path, number):
    """Guards 143 and 130: the step that the signal falls in is finished and saved, and one line says so."""
    args, expected = whole("accumulation, average")
    folder = tmp_path / "out"

    def work():
        with pytest.MonkeyPatch.context() as patch, open(tmp_path / "said", "w") as said:
            patch.setattr(sys, "stdout", said)
            at_batch(5, lambda _: os.kill(os.getpid(), number), patch)  # the first half of step 3
            train([*args, str(folder)])

    assert reliability.in_child(work, folder) == 128 + number
    said = (tmp_path / "said").read_text().splitlines()
    name = signal.Signals(number).name
    assert said[1:] == [f"{name}: {folder} stopped, step 3 is saved; the same line goes on"] and step_of(folder) == 3
    train([*args, str(folder)])
    assert reliability.outcome(folder) == expected


@pytest.mark.parametrize(("loader", "tried", "number"), [
    ("train_dataloader", [], signal.SIGTERM),
    ("val_dataloader", [], signal.SIGINT),
    ("val_dataloader", ["--trainer.num_sanity_val_steps", "2"], signal.SIGTERM),
])  # fmt: skip
def test_a_signal_while_training_starts_is_not_lost(whole, reliability, tmp_path, loader, tried, number):
    """Guards the time in which the trainer has taken the signals for itself: data are made, which can take long, and
    the first validation is tried. A scheduler that saw a status of 0 would take the run for finished."""
    args, expected = whole("average")
    folder, made = tmp_path / "out", getattr(TaskData, loader)

    def work():
        def told(self):
            os.kill(os.getpid(), number)
            return made(self)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TaskData, loader, told)
            train([*tried, *args, str(folder)])

    assert reliability.in_child(work, folder) == 128 + number
    assert step_of(folder) == 1
    train([*args, str(folder)])
    assert reliability.outcome(folder) == expected


def ended_in_validation(args, folder, reliability, batch):
    """End a run by SIGTERM at the end of this batch of validations; return its lines and the step."""
    seen, place = [], folder.parent

    def work():
        real = DepthValidation.on_validation_batch_end

        def counting(self, trainer, *rest):
            real(self, trainer, *rest)
            seen.append(trainer.global_step)
            (place / "seen").write_text(json.dumps(seen))
            if len(seen) == batch:
                os.kill(os.getpid(), signal.SIGTERM)

        with pytest.MonkeyPatch.context() as patch, open(place / "said", "w") as said:
            patch.setattr(sys, "stdout", said)
            patch.setattr(DepthValidation, "on_validation_batch_end", counting)
            train([*args, str(folder)])

    assert reliability.in_child(work, folder) == 128 + signal.SIGTERM
    steps = json.loads((place / "seen").read_text())
    assert len(steps) == batch  # no batch more
    return (place / "said").read_text().splitlines(), steps[-1]


@pytest.mark.parametrize(
    ("variant", "batch"),  # a validation has two batches
    [
        ("average", 4),
        ("accumulation, average", 7),
        ("early stopping", 3),
        ("epochs", 1),
        ("epochs", 3),
    ],
)
def test_a_signal_ends_a_validation_before_its_next_batch(whole, reliability, tmp_path, variant, batch, capsys):
    """Guards long validations, the last one and one between two steps included, of runs measured in steps and in
    epochs: the step before it is saved, one line says so, and the same line makes up for the validation as if it had
    not been cut short."""
    args, expected = whole(variant)
    folder = tmp_path / "out"
    said, step = ended_in_validation(args, folder, reliability, batch)
    assert said[1:] == [f"SIGTERM: {folder} stopped, step {step} is saved; the same line goes on"]
    assert step_of(folder) == step
    capsys.readouterr()
    train([*args, str(folder)])
    if variant == "epochs":
        assert said[0].split(", ")[1] == "2 epochs" and f", {step} steps of 2 epochs, " in capsys.readouterr().out
    assert reliability.outcome(folder) == expected


@pytest.mark.parametrize(("variant", "batch"), [("plain", 4), ("epochs", 3)])
def test_a_validation_that_never_comes_is_not_waited_for(whole, reliability, tmp_path, variant, batch):
    """Guards the number of steps where a signal ends a validation and the next start has none: not one more, and the
    run is finished."""
    args, expected = whole(variant)
    folder = tmp_path / "out"
    ended_in_validation(args, folder, reliability, batch)
    train([*args, str(folder), "--trainer.limit_val_batches", "0"])
    assert step_of(folder) == 6 and reliability.outcome(folder)["weights"] == expected["weights"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_final_measuring(whole, reliability, tmp_path, number):
    """Guards the end of a run: its weights are exported, one line says that only the measuring is missing."""
    args, expected = whole("plain")
    folder = tmp_path / "out"

    def told(*_):
        signal.raise_signal(number)
        os._exit(1)  # nobody has listened

    def work():
        with pytest.MonkeyPatch.context() as patch, open(tmp_path / "said", "w") as said:
            patch.setattr(sys, "stdout", said)
            patch.setattr("mull.inference.measure.evaluate.score", told)
            signal.signal(signal.SIGINT, signal.default_int_handler)  # which may be ignored where tests run
            sys.exit(main(["train", *args, str(folder)]))

    assert reliability.in_child(work, folder) == 128 + number
    name = signal.Signals(number).name
    assert (tmp_path / "said").read_text().splitlines()[-1] == (
        f"{name}: {folder} is trained and saved; the same line measures it"
    )
    assert (folder / "config.json").exists() and not (folder / "depth.json").exists()
    train([*args, str(folder)])
    assert reliability.outcome(folder) == expected


def test_what_ends_the_final_measuring_by_itself_is_no_signal(whole, tmp_path, monkeypatch, capsys):
    """Guards the exit status of a plugin that ends the process while a run is measured: it is told by nobody else."""
    args, _ = whole("plain")
    monkeypatch.setattr("mull.inference.measure.evaluate.score", lambda *_: sys.exit(3))
    with pytest.raises(SystemExit) as ended:
        train([*args, str(tmp_path / "out")])
    assert ended.value.code == 3 and "SIGTERM" not in capsys.readouterr().out


def test_a_signal_behind_the_last_step_is_not_lost(whole, reliability, tmp_path, monkeypatch):
    """Guards against signals that nobody is left to ask for: the run ends, and the same line exports."""
    args, expected = whole("plain")
    real = TrainingModule.on_train_end

    def late(self):
        real(self)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingModule, "on_train_end", late)
        with pytest.raises(SystemExit) as ended:
            train([*args, str(tmp_path / "out")])
    assert ended.value.code == 143 and not (tmp_path / "out" / "config.json").exists()
    train([*args, str(tmp_path / "out")])
    assert reliability.outcome(tmp_path / "out") == expected


def test_what_a_callback_makes_of_a_validation_is_saved(whole, reliability, tmp_path):
    """Guards early stopping: a kill after a validation does not make it forget the best loss or its patience."""
    args, expected = whole("early stopping")
    folder = tmp_path / "out"
    for batches in (4, 3):  # behind the first validation, behind the second
        with pytest.MonkeyPatch.context() as patch:
            at_batch(batches, fail, patch)
            with pytest.raises(Broken):
                train([*args, str(folder)])
    train([*args, str(folder)])
    assert reliability.outcome(folder) == expected


def test_a_time_limit_leaves_the_run_unfinished(whole, reliability, tmp_path, capsys, monkeypatch):
    """Guards max_time: state kept, nothing exported, one line; the time that has passed is not counted again."""
    args, expected = whole("accumulation")
    folder, passed = tmp_path / "out", []
    monkeypatch.setattr(Timer, "time_elapsed", lambda self, *_: 1e9 if passed else 0.0)  # noqa: ARG005
    with monkeypatch.context() as patch:
        at_batch(5, passed.append, patch)
        train([*args, str(folder), "--trainer.max_time", "00:10:00:00"])
    assert f"{folder} is unfinished: stopped at step 3 of 6; the same line goes on" in capsys.readouterr().out
    assert [path.name for path in folder.iterdir()] == ["trainer"] and step_of(folder) == 3
    assert "Timer" not in torch.load(folder / "trainer" / LAST, weights_only=True)["callbacks"]
    passed.clear()
    train([*args, str(folder), "--trainer.max_time", "00:10:00:00"])
    assert reliability.outcome(folder) == expected


def test_a_reader_who_has_gone_ends_no_run(whole, reliability, tmp_path):
    """Guards `mull train ... | head -1`: what nobody reads is not a reason to stop."""
    args, expected = whole("plain")

    def work():
        reading, writing = os.pipe()
        os.close(reading)
        with pytest.MonkeyPatch.context() as patch, open(writing, "w") as said:
            patch.setattr(sys, "stdout", said)
            train([*args, str(tmp_path / "out")])

    assert reliability.in_child(work, tmp_path) == 0
    assert reliability.outcome(tmp_path / "out") == expected


def test_a_trial_leaves_nothing(whole, tmp_path, capsys):
    """Guards fast_dev_run: it is no run, so there is no state that another schedule would go on from."""
    args, _ = whole("plain")
    train([*args, str(tmp_path / "out"), "--trainer.fast_dev_run", "true"])
    assert not (tmp_path / "out").exists() and "tried 1 steps and kept nothing" in capsys.readouterr().out


def test_a_callback_of_the_configuration_ends_a_run(reliability, tmp_path, monkeypatch):
    """Guards early stopping: the run is finished before max_steps, also where only the export is missing."""
    stopping = {"class_path": "lightning.pytorch.callbacks.EarlyStopping"}
    stopping["init_args"] = {"monitor": "val/loss", "patience": 1, "min_delta": 1e9}
    trainer = {"callbacks": [stopping], "max_steps": 40, "accumulate_grad_batches": 2}
    args = [*reliability.arguments(tmp_path, {"trainer": trainer}), str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "export", fail)
        with pytest.raises(Broken):
            train(args)
    assert step_of(tmp_path / "out") == 3  # validated after batches 3 and 6
    monkeypatch.setattr(EarlyStopping, "on_train_start", fail)  # it does not train again
    train(args)
    assert (tmp_path / "out" / "config.json").exists()


def test_an_export_that_was_killed_is_completed_without_leftovers(whole, reliability, tmp_path):
    """Guards the moves of an export: whichever was the last, the same line leaves what a run without a stop leaves."""
    args, expected = whole("plain")
    folder = tmp_path / "out"
    for file in ("model.safetensors", "config.json"):

        def stopping(source, target, real=os.replace, name=file):
            os._exit(reliability.KILLED) if str(target) == str(folder / name) else real(source, target)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "replace", stopping)
            assert reliability.in_child(lambda: train([*args, str(folder)]), folder) == reliability.KILLED
        assert (folder / ".committed" / file).exists()
        train([*args, str(folder)])
        assert reliability.outcome(folder) == expected
        shutil.rmtree(folder)


def test_an_export_that_lost_files_is_made_again(whole, reliability, tmp_path):
    """Guards what earlier versions left: training.yaml alone is no finished run."""
    args, expected = whole("plain")
    train([*args, str(tmp_path / "out")])
    for name in ("config.json", "model.safetensors", "depth.json"):
        (tmp_path / "out" / name).unlink()
    train([*args, str(tmp_path / "out")])
    assert reliability.outcome(tmp_path / "out") == expected


def test_the_state_knows_its_run(whole, tmp_path, monkeypatch):
    """Guards against a lost trainer/config.yaml: another seed is refused all the same, in one line."""
    args, _ = whole("plain")
    with monkeypatch.context() as patch:
        at_batch(3, fail, patch)
        with pytest.raises(Broken):
            train([*args, str(tmp_path / "out")])
    (tmp_path / "out" / "trainer" / "config.yaml").unlink()
    with pytest.raises(ValueError, match=r"another configuration \(seed_everything: 0, now 5"):
        train([*args, str(tmp_path / "out"), "--seed_everything", "5"])
    monkeypatch.setattr("mull.training.identity.VERSION", "9.9")
    with pytest.raises(ValueError, match=r"mull_version: 0\.1\.0, now 9\.9"):
        train([*args, str(tmp_path / "out")])


@pytest.mark.parametrize("system", [True, False])
def test_one_run_a_folder(reliability, tmp_path, monkeypatch, system):
    """Guards the lock, with the system's file locks and without: the second is refused, a dead one holds nothing."""
    if not system:
        monkeypatch.setattr("mull.training.lock.take_by_system", lambda _: None)
    told = f"is being trained by process {os.getpid()} on .*; wait for it"
    with only_run(tmp_path / "out"), pytest.raises(ValueError, match=told):
        reraise(reliability, tmp_path)
    assert not (tmp_path / "out").exists()

    def die():
        with only_run(tmp_path / "out"):
            os.kill(os.getpid(), signal.SIGKILL)

    assert reliability.in_child(die, tmp_path) == -signal.SIGKILL
    assert (tmp_path / "out" / "trainer" / "lock").read_text()
    with only_run(tmp_path / "out"):
        assert str(os.getpid()) in (tmp_path / "out" / "trainer" / "lock").read_text()
    assert [path.name for path in (tmp_path / "out" / "trainer").iterdir()] == []


def reraise(reliability, tmp_path):
    """Try to take the lock in another process; raise here what it raised there."""

    def attempt():
        try:
            with only_run(tmp_path / "out"):
                pass
        except ValueError as error:
            (tmp_path / "error").write_text(str(error))

    assert reliability.in_child(attempt, tmp_path) == 0
    raise ValueError((tmp_path / "error").read_text())


def test_the_number_of_a_dead_process_may_be_another_ones(tmp_path):
    """Guards the lock without system locks: a process of the same number that started at another time holds nothing."""
    file = tmp_path / "lock"
    take_by_name(file)
    host, number, started = file.read_text().split(maxsplit=2)
    with pytest.raises(ValueError, match="is being trained"):
        take_by_name(file)
    file.write_text(f"{host} {number} {started}9")
    take_by_name(file)
    assert file.read_text() == f"{host} {number} {started}" and [path.name for path in tmp_path.iterdir()] == ["lock"]
