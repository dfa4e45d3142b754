"""A run that was interrupted and continued by the same command line is the run without the break, bit for bit."""

import copy
import csv
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import mull
from mull.training import run as run_module
from mull.training.callbacks import Throughput
from mull.training.data import TaskData
from mull.training.losses import LastIteration
from mull.training.module import TrainingModule
from mull.training.run import train
from mull.training.skips import NonFiniteLossError
from mull.training.states import StateFiles

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on workers, epochs and batch sizes

STEPS, SAVED, BREAK = 6, 4, 5  # a state every 2 steps; the break comes after step 5, so step 4 is gone on from
BASE = yaml.safe_load(
    """
seed_everything: 0
save_every: 2
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
POISSON = {"class_path": "mull.training.iterations.PoissonPerSequence", "init_args": {"mean": 3}}
VARIANTS = {
    "adamw": {},
    "muon": {"model": {"optimizer": {"class_path": "mull.training.optimizers.MuonAdamW"}}},
    "ema": {"trainer": {"callbacks": [EMA]}},
    "per-sequence": {"model": {"iterations": POISSON}},
    "accumulate": {"trainer": {"accumulate_grad_batches": 2}},
}


class Broken(Exception):
    """What ends a run in these tests."""


@dataclass
class Runs:
    """One variant: its folder without a break, its folder with one, and a copy of that from before it was continued."""

    args: list[str]
    whole: Path
    broken: Path
    unfinished: Path


def configure(folder, changes):
    """Write the YAML of a variant; return the arguments that train it."""
    config = copy.deepcopy(BASE)
    for section, values in changes.items():
        config[section] |= values
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return ["--config", str(folder / "run.yaml"), "--output"]


def fail(*_, **__):
    raise Broken


def break_after(step, error, patch):
    """Let a run raise `error` right after optimizer step `step`."""
    real = Throughput.on_train_batch_end

    def raising(self, trainer, *rest):
        real(self, trainer, *rest)
        if trainer.global_step == step:
            raise error

    patch.setattr(Throughput, "on_train_batch_end", raising)


@pytest.fixture(scope="module", autouse=True)
def few_examples():
    """The table of the exported folder is no matter here: measure it on four examples."""
    real = TaskData.evaluation_batches
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TaskData, "evaluation_batches", lambda self, **_: real(self, examples=4))
        yield


@pytest.fixture(scope="module", params=VARIANTS)
def runs(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    args = configure(folder, VARIANTS[request.param])
    whole, broken, unfinished = folder / "whole", folder / "broken", folder / "unfinished"
    train([*args, str(whole)])
    with pytest.MonkeyPatch.context() as patch:
        break_after(BREAK, Broken(), patch)
        with pytest.raises(Broken):
            train([*args, str(broken)])
    shutil.copytree(broken, unfinished)
    torch.manual_seed(1234)  # whatever state the process is in
    train([*args, str(broken)])
    return Runs(args, whole, broken, unfinished)


def logged(folder):
    """{(step, column): value} of a folder's log, the clock's columns left out; no cell is there twice."""
    with open(folder / "trainer" / "logs" / "version_0" / "metrics.csv") as file:
        cells = [
            ((int(row["step"]), name), value)
            for row in csv.DictReader(file)
            for name, value in row.items()
            if value and name not in ("epoch", "step", "train/tokens_per_second")
        ]
    assert len(dict(cells)) == len(cells)
    return dict(cells)


def contents(folder):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def test_the_log_is_that_of_a_run_without_a_break(runs):
    """Guards data, depths, initial states, optimizer, schedule and log: equal losses and gradients, each once."""
    whole, before, after = logged(runs.whole), logged(runs.unfinished), logged(runs.broken)
    assert {step for step, name in whole if name == "train/loss"} == set(range(STEPS))
    assert after == whole
    assert before.items() < whole.items() and {step for step, _ in before} >= set(range(SAVED))
    assert len({value for (_, name), value in whole.items() if name == "train/loss"}) == STEPS  # no batch seen twice


def test_the_weights_are_bit_identical(runs):
    """Guards the result: the exported folders hold the same weights."""
    whole, broken = (load_file(folder / "model.safetensors") for folder in (runs.whole, runs.broken))
    assert whole.keys() == broken.keys()
    assert [name for name in whole if not torch.equal(whole[name], broken[name])] == []


def test_the_state_loads_without_running_code(runs):
    """Guards the trainer's state against pickles that need more than tensors and plain values."""
    for folder, step in ((runs.unfinished, SAVED), (runs.broken, STEPS)):
        assert torch.load(folder / "trainer" / "last.ckpt", weights_only=True)["global_step"] == step


def test_the_trainer_folder_holds_one_state(runs):
    """Guards the disk: nothing but state, configuration, threads and logs is written beside the checkpoint."""
    found = {str(path.relative_to(runs.whole)) for path in runs.whole.rglob("*") if path.is_file()}
    assert {path for path in found if path.startswith("trainer/")} == {
        "trainer/config.yaml", "trainer/last.ckpt", "trainer/threads.txt", "trainer/logs/version_0/metrics.csv"
    }  # fmt: skip
    left = {path.name for path in (runs.unfinished / "trainer").glob("*") if path.is_file()}
    assert left == {"config.yaml", "last.ckpt", "previous.ckpt", "threads.txt"}


def test_the_same_command_on_a_finished_run_changes_nothing(runs, capsys):
    """Guards a finished checkpoint against being trained or written again."""
    before = contents(runs.whole)
    assert train([*runs.args, str(runs.whole)]) == runs.whole
    assert "holds the finished run" in capsys.readouterr().out
    assert contents(runs.whole) == before


def test_the_exported_folder_loads(runs):
    """Guards the end of a run: a model that answers, with the depth and vocabulary of its data."""
    model = mull.load(runs.broken)
    assert model.config.mean_iterations == 2
    assert model(torch.zeros(1, 3, dtype=torch.int64), iterations=5).logits.isfinite().all()


def test_the_average_is_exported(tmp_path, monkeypatch):
    """Guards weight averaging: the folder holds the moving average of the weights, computed here beside the run."""
    average = {}

    def follow(self, trainer, module, *_):  # noqa: ARG001
        for name, weight in module.network.state_dict().items():
            mean = average.get(name)
            average[name] = weight.clone() if mean is None else mean + 0.5 * (weight - mean)

    monkeypatch.setattr(Throughput, "on_train_batch_end", follow)
    train([*configure(tmp_path, VARIANTS["ema"]), str(tmp_path / "out")])
    exported = load_file(tmp_path / "out" / "model.safetensors")
    for name in exported:
        torch.testing.assert_close(exported[name], average[name])


@pytest.mark.parametrize("runs", ["ema"], indirect=True)
def test_a_run_broken_between_its_last_step_and_the_export_ends_the_same(runs, tmp_path, monkeypatch):
    """Guards the export: it writes the averaged weights also when another process has to make up for it."""
    whole = load_file(runs.whole / "model.safetensors")
    for name, place in (("before", (TrainingModule, "on_train_end")), ("after", (run_module, "export"))):
        with monkeypatch.context() as patch:  # before and after the trainer puts the average in the weights' place
            patch.setattr(*place, fail)
            with pytest.raises(Broken):
                train([*runs.args, str(tmp_path / name)])
        assert torch.load(tmp_path / name / "trainer" / "last.ckpt", weights_only=True)["global_step"] == STEPS
        train([*runs.args, str(tmp_path / name)])
        resumed = load_file(tmp_path / name / "model.safetensors")
        assert [key for key in whole if not torch.equal(whole[key], resumed[key])] == [], name


@pytest.mark.parametrize("runs", ["adamw"], indirect=True)
def test_a_crash_while_measuring_loses_no_weights_and_the_same_command_measures_again(runs, tmp_path, monkeypatch):
    """Guards the order of the end: weights first, then log, depth.json and the card with it, with the same numbers."""
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(TaskData, "evaluation_batches", fail)
        with pytest.raises(Broken):
            train([*runs.args, str(out)])
    whole, written = (load_file(folder / "model.safetensors") for folder in (runs.whole, out))
    assert all(torch.equal(whole[name], written[name]) for name in whole)
    assert not (out / "depth.json").exists() and "By iteration count" not in (out / "README.md").read_text()
    before = contents(out)
    train([*runs.args, str(out)])
    changed = {path.name for path, state in contents(out).items() if before.get(path) != state}
    assert (
        changed == {"depth.json", "depth.png", "README.md", "metrics.csv"}
        and "By iteration count" in (out / "README.md").read_text()
    )
    depths = [json.loads((folder / "depth.json").read_text()) for folder in (runs.whole, out)]
    rows = [[{**row, "seconds": None} for row in depth["rows"]] for depth in depths]
    assert rows[0] == rows[1] and depths[1]["command"].startswith("mull train --config ")


@pytest.mark.parametrize("runs", ["adamw"], indirect=True)
def test_another_configuration_is_refused(runs):
    """Guards both a finished and an unfinished run: one line that names the field, and nothing changes."""
    for folder, option, value, said in (
        (runs.whole, "--model.warmup_steps", "3", "model.warmup_steps: 2, now 3"),
        (runs.unfinished, "--trainer.max_steps", "5", "trainer.max_steps: 6, now 5"),
        (runs.unfinished, "--seed_everything", "5", "seed_everything: 0, now 5"),
    ):
        before = contents(folder)
        with pytest.raises(ValueError, match=f"another configuration .*{said}") as told:
            train([*runs.args, str(folder), option, value])
        assert "\n" not in str(told.value) and "--output" in str(told.value)
        assert contents(folder) == before


LATER = {  # fields that an earlier version did not have, with another value than the default
    "model.auxiliary_weight": "0.5",
    "model.network.init_args.config.qk_norm": "true",
    "data.init_args.curriculum": "{3: 4}",
    "trainer.sync_batchnorm": "true",
}


def without(configuration, field):
    """A recorded configuration that lacks a field."""
    *sections, name = field.split(".")
    for section in sections:
        configuration = configuration[section]
    del configuration[name]


@pytest.mark.parametrize("runs", ["adamw"], indirect=True)
@pytest.mark.parametrize("finished", [True, False])
def test_fields_that_came_later_had_their_defaults(runs, tmp_path, capsys, finished):
    """Guards records of earlier versions: their runs are the same runs, unless a new field is given another value."""
    out, last = tmp_path / "out", tmp_path / "out" / "trainer" / "last.ckpt"
    shutil.copytree(runs.whole if finished else runs.unfinished, out)
    if finished:
        record = yaml.safe_load((out / "training.yaml").read_text())
        for field in LATER:
            without(record, field)
        (out / "training.yaml").write_text(yaml.safe_dump(record))
    else:
        state = torch.load(last, weights_only=True)
        for field in LATER:
            without(state["mull"]["identity"]["configuration"], field)
        StateFiles().save_checkpoint(state, last)
    for field, value in LATER.items():
        with pytest.raises(ValueError, match=f"another configuration .{field}"):
            train([*runs.args, str(out), f"--{field}", value])
    train([*runs.args, str(out)])
    assert ("holds the finished run" if finished else "going on with") in capsys.readouterr().out
    weights = [load_file(folder / "model.safetensors") for folder in (runs.whole, out)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("runs", ["adamw"], indirect=True)
def test_a_finished_run_needs_no_state(runs, tmp_path, capsys):
    """Guards finished folders whose state is damaged, or was left by an earlier version: nobody needs it any more."""
    shutil.copytree(runs.whole, tmp_path / "out")
    (tmp_path / "out" / "trainer" / "last.ckpt").write_bytes(b"x" * 500)
    (tmp_path / "out" / "depth.json").unlink()
    train([*runs.args, str(tmp_path / "out")])
    assert "holds the finished run" in capsys.readouterr().out and (tmp_path / "out" / "depth.json").exists()


@pytest.mark.parametrize("runs", ["adamw"], indirect=True)
def test_what_does_not_decide_the_weights_may_change(runs, tmp_path):
    """Guards going on with another interval between states or another log."""
    shutil.copytree(runs.unfinished, tmp_path / "out")
    train(
        [*runs.args, str(tmp_path / "out"), "--save_every", "1", "--trainer.log_every_n_steps", "2", "--threads", "1"]
    )
    assert (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize("runs", ["adamw"], indirect=True)
def test_a_damaged_log_is_named(runs, tmp_path):
    """Guards metrics.csv: one line says what is wrong with it and how to go on, which then works."""
    shutil.copytree(runs.unfinished, tmp_path / "out")
    file = tmp_path / "out" / "trainer" / "logs" / "version_0" / "metrics.csv"
    for data in (b"\xff\n1\n", b"step,loss\n1,2,3\n", b"step,loss\nx,2\n", b"step,loss\n1\n", b"loss\n2\n"):
        file.write_bytes(data)
        with pytest.raises(
            ValueError, match=r"metrics\.csv is damaged .*: move it away, and the same line goes on"
        ) as told:
            train([*runs.args, str(tmp_path / "out")])
        assert "\n" not in str(told.value) and file.read_bytes() == data
    file.unlink()
    train([*runs.args, str(tmp_path / "out")])
    assert min(step for step, _ in logged(tmp_path / "out")) == SAVED


class NaN(LastIteration):
    """A loss that is no number from the sixth batch on."""

    calls = 0

    def __call__(self, output, labels):
        NaN.calls += 1
        return super().__call__(output, labels) * (1 if NaN.calls < 6 else float("nan"))


def test_a_nan_loss_leaves_the_last_good_state_and_no_checkpoint(tmp_path, monkeypatch):
    """Guards the good state: it is that behind the first skipped step, 5, and holds the weights of the one before."""
    monkeypatch.setattr(NaN, "calls", 0)
    args = configure(tmp_path, {"model": {"loss": f"{__name__}.NaN"}, "trainer": {"max_steps": 9}})
    saved, good = {}, {}

    def note(self, trainer, module, *_):  # noqa: ARG001
        last = tmp_path / "out" / "trainer" / "last.ckpt"
        saved[trainer.global_step] = last.read_bytes() if last.exists() else None
        good[trainer.global_step] = {f"network.{k}": v.clone() for k, v in module.network.state_dict().items()}

    monkeypatch.setattr(Throughput, "on_train_batch_start", note, raising=False)
    with pytest.raises(NonFiniteLossError, match=r"nan at step 7, and 3 .*; the last good state stays in .*last\.ckpt"):
        train([*args, str(tmp_path / "out"), "--save_every", "4"])
    last = tmp_path / "out" / "trainer" / "last.ckpt"
    assert last.read_bytes() == saved[7] != saved[5]
    state = torch.load(last, weights_only=True)
    assert state["global_step"] == 6 and state["skips"]["in_a_row"] == 1
    assert all(torch.equal(weight, good[5][name]) for name, weight in state["state_dict"].items())
    assert [path.name for path in last.parent.parent.iterdir()] == ["trainer"]


def test_an_average_that_is_no_number_makes_no_model(tmp_path):
    """Guards what is exported against what happens to weights behind the gradients: Lightning takes a decay of NaN."""
    broken = {"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging", "init_args": {"decay": float("nan")}}
    args = configure(tmp_path, {"trainer": {"callbacks": [broken]}})
    with pytest.raises(ValueError, match=r"numbers that are not finite, so .*out gets no model; look at the callbacks"):
        train([*args, str(tmp_path / "out")])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["trainer"]


def test_a_run_that_saved_nothing_can_be_corrected_in_place(tmp_path, monkeypatch):
    """Guards the corrected command line: a mistake found at the first step does not make the folder somebody's run, and
    what was there before stays."""
    args = [*configure(tmp_path, {}), str(tmp_path / "out")]
    (tmp_path / "out" / "trainer").mkdir(parents=True)
    (tmp_path / "out" / "trainer" / "notes.md").write_text("mine")
    with pytest.raises(ValueError, match="the network takes 3"):
        train([*args, "--model.network.init_args.config.max_length", "3"])
    with monkeypatch.context() as patch, pytest.raises(OverflowError):  # whatever kind of mistake it is
        patch.setattr(Throughput, "on_train_batch_start", lambda *_: (1 << 70).to_bytes(1))
        train(args)
    assert [path.name for path in (tmp_path / "out").rglob("*")] == ["trainer", "notes.md"]
    train(args)
    assert (tmp_path / "out" / "config.json").exists()


def test_a_file_or_a_foreign_checkpoint_in_the_way_is_refused(tmp_path):
    """Guards what is there already."""
    args = configure(tmp_path, {})
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is a file"):
        train([*args, str(tmp_path / "file")])
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="training is unknown"):
        train([*args, str(tmp_path / "foreign")])
    assert [path.name for path in (tmp_path / "foreign").iterdir()] == ["config.json"]
