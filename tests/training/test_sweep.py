"""mull sweep: which runs it makes, that it goes on, what it gathers, and what it refuses."""

import csv
import json
import re
import shlex
import statistics
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.fabric.utilities.seed import max_seed_value

from mull.cli import main
from mull.training import sweep
from mull.training.sweep import Run, axis, job_options, planned, submit

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def line(reliability: Any, tmp_path: Path) -> list[str]:
    """A sweep of two settings and two seeds, of tiny runs."""
    config = reliability.arguments(tmp_path, {"trainer": {"max_steps": 2, "val_check_interval": 2}})[1]
    settings = ["--seeds", "0,1", "--set", "model.backprop_iterations=1,2"]
    return ["sweep", "--config", config, *settings, "--output", str(tmp_path / "all")]


def test_a_sweep_is_resumed_and_gathered(
    line: list[str],
    tmp_path: Path,
    reliability: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Guards the whole: an interrupted sweep keeps its finished runs, and the table is that of their depth.json."""
    trained: list[str] = []
    ends = 3

    def train(each: Run, **_: bool) -> None:
        if len(trained) == ends:
            raise KeyboardInterrupt
        trained.append(each.line)
        reliability.train(each.command[1:])

    monkeypatch.setattr(sweep, "train", train)
    assert main(line) == 130
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.glob("all/*/model.safetensors")}
    assert len(finished) == 3
    assert main([*line, "--gather"]) == 0
    assert "1 of 4 runs are unfinished" in capsys.readouterr().out
    trained.clear()
    ends = 4
    assert main([*line, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["runs"] == trained and found["unfinished"] == []
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert json.loads((tmp_path / "all" / "sweep.json").read_text()) == found
    for row in found["rows"]:
        window = row["settings"]["model.backprop_iterations"]
        losses = []
        for seed in (0, 1):
            folder = tmp_path / "all" / f"backprop_iterations={window}-seed={seed}"
            for measured in json.loads((folder / "depth.json").read_text())["rows"]:
                if all(measured[name] == row[name] for name in ("iterations", "difficulty")):
                    losses.append(measured["loss"])
        assert row["n"] == len(losses) == 2 and losses[0] != losses[1]
        assert row["loss"] == statistics.fmean(losses) and row["loss_sd"] == statistics.stdev(losses)
    with open(tmp_path / "all" / "sweep.csv") as file:
        table = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in table] == [row["loss"] for row in found["rows"]]
    assert {row["model.backprop_iterations"] for row in table} == {"1", "2"}
    changed = tmp_path / "changed.yaml"  # finished runs of another configuration are no part of a table
    changed.write_text("model: {warmup_steps: 9}\n")
    for more in ([], ["--gather"], ["--dry-run"]):
        assert main([*line, "--config", str(changed), *more]) == 2
        assert re.search(
            r"seed=0 holds a run of another configuration \(model.warmup_steps: \d+, now 9\)", capsys.readouterr().err
        )
    changed.write_text("trainer: {max_steps: 3}\n")  # longer ones are not finished
    assert main([*line, "--config", str(changed), "--gather"]) == 2
    assert "no run in" in capsys.readouterr().err
    changed.write_text("trainer: {max_steps: 1}\n")  # and shorter ones are others
    assert main([*line, "--config", str(changed), "--dry-run"]) == 2
    assert "(trainer.max_steps: 2, now 1)" in capsys.readouterr().err
    depth = tmp_path / "all" / "backprop_iterations=2-seed=1" / "depth.json"  # nor are those that were not measured
    measured = depth.read_bytes()
    depth.write_text(json.dumps({**json.loads(measured), "command": f"mull evaluate {depth.parent} --exit latent:0.1"}))
    with pytest.warns(UserWarning, match="by `mull evaluate --exit latent:0.1`, and by their training: measure all"):
        assert main([*line, "--gather"]) == 0
    capsys.readouterr()
    depth.unlink()
    assert main([*line, "--gather"]) == 0 and "1 of 4 runs are unfinished" in capsys.readouterr().out
    depth.write_bytes(measured)
    for file in (tmp_path / "all").glob("*=1-seed=0/*.*"):  # so are those that are unfinished
        file.unlink()
    changed.write_text("model: {warmup_steps: 9}\n")
    assert main([*line, "--seeds", "0", "--config", str(changed), "--dry-run"]) == 2
    assert "backprop_iterations=1-seed=0 holds a run of another configuration" in capsys.readouterr().err
    assert main([*line, "--gather"]) == 0 and "1 of 4 runs are unfinished" in capsys.readouterr().out


def test_runs_that_were_measured_in_different_ways_have_no_mean(tmp_path: Path) -> None:
    """Guards the table: a run that was measured again, on few examples or with an exit rule, is told of beside those
    that were measured at the end of their training, or in another way; a folder of its own is no other way."""
    lines = ["train --output {}", "train --output {} --seed_everything=1"]

    def runs(*commands: str) -> list[Run]:
        found = []
        for seed, command in enumerate(commands):
            folder = tmp_path / f"seed={seed}"
            folder.mkdir(exist_ok=True)
            told = {"command": f"mull {command.format(folder)}", "rows": [{"iterations": 2, "loss": 1.0}]}
            (folder / "depth.json").write_text(json.dumps(told))
            found.append(Run({}, seed, folder, []))
        return found

    short = "evaluate {} --examples 8"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sweep.tell_mixed(runs(*lines))
        sweep.tell_mixed(runs(short, short))
        sweep.tell_mixed(runs("evaluate {} --output plots/seed=0", "evaluate {} --output plots/seed=1"))
    for other in (lines[1], "evaluate {} --examples 9", "evaluate {} --examples 8 --exit latent:0.1"):
        with pytest.warns(UserWarning, match=r"by `mull evaluate --examples 8.*, and by .*: measure all alike"):
            sweep.tell_mixed(runs(short, other))


def test_a_trial_prints_the_lines_and_leaves_nothing(
    line: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*line, "--dry-run"]) == 0
    said = [shlex.split(each) for each in capsys.readouterr().out.splitlines()]
    assert len(said) == 4 and not (tmp_path / "all").exists()
    field, place = "--model.backprop_iterations=2", str(tmp_path / "all" / "backprop_iterations=2-seed=1")
    assert said[3] == ["mull", "train", *line[1:3], field, "--seed_everything=1", "--output", place]


def test_values_may_have_commas_inside() -> None:
    assert axis("model.validate_at=[1,2],[1,4]") == ("model.validate_at", ["[1,2]", "[1,4]"])
    assert axis("model.warmup_steps=1, 2") == ("model.warmup_steps", ["1", "2"])
    assert axis("data.init_args.curriculum={10:4},null") == ("data.init_args.curriculum", ["{10:4}", "null"])
    nested = ["{a: [{b: 1, c: 2}, 3]}", "{a: ']', b: \"{,\"}"]
    assert axis(f"model.loss={','.join(nested)}") == ("model.loss", nested)
    runs = planned(["a.yaml"], [0], ["model.mean=1,2", "data.mean=3"], Path("all"), ["own"])
    assert [each.folder.name for each in runs] == ["model.mean=1-data.mean=3-seed=0", "model.mean=2-data.mean=3-seed=0"]
    assert runs[0].command[:3] == ["train", "--plugin", "own"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--seeds", "0,x"], "no list of integers"),
        (["--seeds", "1,1"], "a seed is there twice"),
        (["--seeds", "0,4294967296"], "4294967296 is above the limit of 4,294,967,295"),
        (["--set", "model.nope=1"], "there is no option --model.nope"),
        (["--set", "model.backprop_iterations=0"], "backprop_iterations must be at least 1, not 0"),
        (["--set", "backprop"], "--set 'backprop' is not understood; write a field and its values as"),
        (["--set", "model.validate_at=[1,[2],3"], "is not understood"),
        (["--set", "model.validate_at=[1},2"], "is not understood"),
        (["--set", "model.warmup_steps=1,,2"], "is not understood"),
        (["--set", "seed_everything=1,2"], "give --seeds"),
        (["--set", "data.init_args.seed=1,2"], "--set data.init_args.seed is not for a sweep: give --seeds"),
        (["--set", "model.warmup_steps=1,1"], "has a value twice"),
        (["--set", f"model.validate_at={[*range(1, 120)]}".replace(" ", "")], "is longer than 255 bytes: give shorter"),
        (["--set", "model.warmup_steps=1, 1"], "has a value twice"),
        (["--set", "model.warmup_steps=1,01"], "warmup_steps=01 and model.warmup_steps=1 are one configuration: leave"),
        (["--set", "model.warmup_steps=1", "--set", "model.warmup_steps=2"], "a field is set twice"),
        (["--slurm-option", "timeout_min=1"], "add --slurm"),
        (["--slurm"], "the runs cannot be submitted"),
        (["--gather"], "no run in .* is finished yet"),
    ],
)
def test_a_mistake_is_one_line_and_trains_nothing(
    line: list[str], tmp_path: Path, more: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr(sweep, "train", lambda *_: pytest.fail("a run was begun"))
    monkeypatch.setenv("PATH", str(tmp_path))  # where no cluster is
    if "--slurm" in more:
        pytest.importorskip("submitit")
    assert main([*line[:3], *line[-2:], *more]) == 2
    errors = capsys.readouterr().err
    assert re.search(said, errors), errors
    assert errors.count("mull: error:") == 1 and not list(tmp_path.glob("all/*/*"))


def test_the_largest_seed_is_that_of_a_run() -> None:
    """Guards the number that stands in sweep.py in place of Lightning's own."""
    assert max_seed_value == sweep.LARGEST_SEED


def test_jobs_are_submitted_as_an_array(tmp_path: Path) -> None:
    """Guards what is handed to submitit, by its executor that runs a job where it is."""
    submitit = pytest.importorskip("submitit")
    runs = [Run({}, seed, tmp_path / str(seed), ["--version"]) for seed in (0, 1)]
    options = job_options(["timeout_min=5", "slurm_partition=long"])
    assert options == {"timeout_min": 5, "slurm_partition": "long"}
    done: list[Any] = []
    real = submitit.AutoExecutor.submit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(submitit.AutoExecutor, "submit", lambda *given: done.append(real(*given)) or done[-1])
        assert len(submit(runs, tmp_path, options, cluster="debug")) == 2
    assert [each.result() for each in done] == [0, 0]
    for wrong in ("timeout_min", "0x=1"):
        with pytest.raises(ValueError, match="write it as timeout_min=600"):
            job_options([wrong])
    with pytest.raises(ValueError, match=r"cannot be submitted.*nope"):
        submit(runs, tmp_path, {"nope": 1}, cluster="debug")


def test_a_run_that_fails_says_why_itself(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Guards the one error line, with the run's own words and status, and a word on where it was."""
    with pytest.raises(SystemExit) as ended:
        sweep.train(Run({}, 0, tmp_path / "one", ["nothing"]), quiet=True)
    said = capfd.readouterr().err.splitlines()
    assert ended.value.code == 2 and [line.startswith("mull: error: ") for line in said] == [True, False]
    assert said[1] == f"{tmp_path / 'one'} is unfinished, as is said above; what is finished stays"


def test_a_run_that_is_killed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards a run that cannot say why it ended, as one that the system has ended for want of memory."""
    monkeypatch.setattr(sweep.subprocess, "Popen", lambda *_, **__: SimpleNamespace(wait=lambda: -9))
    with pytest.raises(ValueError, match=r"one was ended by SIGKILL; the same line goes on there"):
        sweep.train(Run({}, 0, tmp_path / "one", []), quiet=True)
