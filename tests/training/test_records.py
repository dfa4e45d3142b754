"""What logs of every kind hold of a run: all of its rows once, its configuration and its results, breaks or none."""

import csv
import json
import os
import struct

import pytest
import yaml

from mull.inference.measure.results import Result
from mull.training import run as run_module
from mull.training.boards import TensorBoardLog, WandbLog, events, tag
from mull.training.callbacks import Throughput
from mull.training.data import TaskData
from mull.training.records import flat, named
from mull.training.run import train

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on workers, epochs and batch sizes
CLOCK = ("step", "epoch", "train/tokens_per_second")


class Broken(Exception):
    """What ends a run in these tests."""


@pytest.fixture(autouse=True)
def few_examples(monkeypatch):
    real = TaskData.evaluation_batches
    monkeypatch.setattr(TaskData, "evaluation_batches", lambda self, **_: real(self, examples=4))


def broken_twice(reliability, folder, option):
    """Train a run that breaks after step 3, whose state is that of step 2, and again while it is measured."""
    args = [*reliability.arguments(folder, {}), str(folder / "out"), *option]
    with pytest.MonkeyPatch.context() as patch:
        real = Throughput.on_train_batch_end

        def ending(self, trainer, *rest):
            real(self, trainer, *rest)
            if trainer.global_step == 4:
                raise Broken

        patch.setattr(Throughput, "on_train_batch_end", ending)
        with pytest.raises(Broken):
            train(args)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mull.training.export.keep_results", lambda *_: fail())  # behind the logs, before depth.json
        told = counted(patch)
        with pytest.raises(Broken):
            train(args)
        assert told == [6]
    with pytest.MonkeyPatch.context() as patch:
        told = counted(patch)
        train(args)
        assert told == [6]  # the results were logged once more, behind the same step
    return folder / "out"


def counted(patch):
    """The steps behind which results are logged from now on."""
    told, real = [], run_module.conclude

    def telling(loggers, results, step):
        told.append(step)
        real(loggers, results, step)

    patch.setattr(run_module, "conclude", telling)
    return told


def fail():
    raise Broken


def cells(folder):
    """{(step, name): value} of metrics.csv, the clock's left out."""
    with open(folder / "trainer" / "logs" / "version_0" / "metrics.csv") as file:
        found = [
            ((int(row["step"]), name), float(value))
            for row in csv.DictReader(file)
            for name, value in row.items()
            if value and name not in CLOCK
        ]
    assert len(dict(found)) == len(found)
    return dict(found)


def test_metrics_end_with_what_was_measured(reliability, tmp_path):
    """Guards the results: every count and difficulty of depth.json, behind the last step, once."""
    folder = broken_twice(reliability, tmp_path, [])
    results = {name: value for (step, name), value in cells(folder).items() if step == 6}
    rows = json.loads((folder / "depth.json").read_text())["rows"]
    measures = ("accuracy", "loss")
    assert results == {f"depth/{measure}@{row['iterations']}": row[measure] for row in rows for measure in measures}
    assert [row["iterations"] for row in rows] == [1, 3, 6, 12]


def test_results_of_several_difficulties_have_names_of_their_own():
    """Guards `named`: by count, and by difficulty where there are several; without a loop there is no count."""
    common = dict.fromkeys(Result.__dataclass_fields__)
    rows = [Result(**{**common, "iterations": 2, "difficulty": d, "loss": float(d)}) for d in (4, 5)]
    assert named(rows) == {"depth/loss@2/4": 4.0, "depth/loss@2/5": 5.0}
    assert named([Result(**{**common, "loss": 3.0, "bits_per_byte": 2.0})]) == {
        "depth/loss": 3.0,
        "depth/bits_per_byte": 2.0,
    }


@pytest.mark.parametrize("option", [["--logger", "tensorboard"], ["--trainer.logger=tensorboard"]])
def test_tensorboard_has_every_row_once(reliability, tmp_path, option):
    """Guards events of steps that are done again: as a reader finds them, and as they lie in the files."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    folder = broken_twice(reliability, tmp_path, option)
    scalars, plugins = [], []
    for file in sorted((folder / "trainer" / "logs" / "tensorboard").glob("events*")):
        for record, step in events(file.read_bytes()):
            event = event_pb2.Event.FromString(record[12:-4])
            assert event.step == step
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "hparams":
                    plugins.append((value.tag, value.metadata.plugin_data.content))
                elif value.tag not in CLOCK:
                    scalars.append(((step, value.tag), value.simple_value))
    expected = {(step, tag(name)): value for (step, name), value in cells(folder).items()}
    assert len(scalars) == len(dict(scalars)) and dict(scalars).keys() == expected.keys()
    assert all(value == pytest.approx(expected[cell], rel=1e-6) for cell, value in scalars)
    tags = [name.rpartition("/")[2] for name, _ in plugins]
    assert tags == ["experiment", "session_start_info", "session_end_info"]
    start = dict(zip(tags, (content for _, content in plugins), strict=True))["session_start_info"]
    shown = plugins[0][1]  # the names of the columns beside the configuration
    assert all(tag(name).encode() in shown for name in ("val/loss", "depth/loss@1", "depth/loss@12"))
    assert b"model.iterations.init_args.mean" in start and b"seed_everything" in start


def test_what_is_logged_after_the_end_overwrites_nothing(tmp_path, monkeypatch):
    """Guards a run of less than a second, whose results are logged behind its end: their file would have the name of
    that of its rows."""
    pytest.importorskip("tensorboardX")
    monkeypatch.setattr("tensorboardX.event_file_writer.time.time", lambda: 1234567890.5)
    log = TensorBoardLog(tmp_path)
    log.log_metrics({"train/loss": 1.0}, 0)
    log.finalize("success")
    log.finalize("success")  # Lightning does so twice
    log.conclude({"depth/loss@1": 2.0}, 1)
    files = sorted((tmp_path / "logs" / "tensorboard").glob("events*"))
    assert [{step for _, step in events(file.read_bytes())} for file in files] == [{0}, {0, 1}]
    assert b"train/loss" in files[0].read_bytes() and b"depth/loss_1" in files[1].read_bytes()


def test_events_are_read_as_far_as_they_were_written(reliability, tmp_path):
    """Guards a file whose writer was killed: its last record, which is cut short, is no record."""
    pytest.importorskip("tensorboardX")
    train([*reliability.arguments(tmp_path, {}), str(tmp_path / "out"), "--logger", "tensorboard"])
    data = min((tmp_path / "out" / "trainer" / "logs" / "tensorboard").glob("events*")).read_bytes()
    whole = list(events(data))
    assert b"".join(record for record, _ in whole) == data
    for cut in (1, 5, len(whole[-1][0]) - 1):
        assert list(events(data[:-cut])) == whole[:-1]


def test_tensorboard_without_its_package_is_one_line(reliability, tmp_path, monkeypatch):
    """Guards an installation without the extra."""

    def missing(*_, **__):
        raise ModuleNotFoundError("Neither of them is available")

    monkeypatch.setattr("lightning.pytorch.loggers.TensorBoardLogger.__init__", missing)
    with pytest.raises(ValueError, match=r"tensorboard needs a package .*: pip install tensorboardX, or leave it out"):
        train([*reliability.arguments(tmp_path, {}), str(tmp_path / "out"), "--logger", "tensorboard"])
    assert not (tmp_path / "out").exists()


def records_of(file):
    """The records of a .wandb file: blocks of 32 KiB of pieces, each with a sum, a length and a kind."""
    data, place, found, piece = file.read_bytes(), 7, [], b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        piece += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last of several
            found.append(piece)
            piece = b""
    return found


def test_wandb_goes_on_with_the_same_run(reliability, tmp_path, monkeypatch):
    """Guards offline records: one id, name and group; every row sent once under its step; the configuration in it."""
    pb = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    folder = broken_twice(reliability, tmp_path, ["--logger", "wandb"])
    rows, runs, configuration = [], set(), {}
    files = sorted((folder / "trainer" / "wandb").glob("offline-run-*/*.wandb"))
    for file in files:
        for data in records_of(file):
            record = pb.Record.FromString(data)
            for item in record.history.item:
                name = item.key or "/".join(item.nested_key)
                rows += [((record.history.step.num, name), json.loads(item.value_json))]
            if record.HasField("run"):
                runs.add((record.run.run_id, record.run.display_name, record.run.run_group))
            for item in record.config.update:
                configuration[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
    rows = [(cell, value) for cell, value in rows if cell[1] not in CLOCK and not cell[1].startswith(("_", "trainer/"))]
    expected = cells(folder)
    results = {cell for cell in expected if cell[0] == 6}  # sent by the start that broke while measuring, and again
    sent = [(cell, value) for cell, value in rows if cell not in results]
    assert len(sent) == len(dict(sent)) and dict(rows) == pytest.approx(expected)
    assert runs == {((folder / "trainer" / "wandb.txt").read_text().strip(), "out", "run")} and len(files) == 3
    written = flat(yaml.safe_load((folder / "trainer" / "config.yaml").read_text()))
    assert configuration["seed_everything"] == 0 and configuration["model.iterations.init_args.mean"] == 3
    assert {name for name in written if not name.startswith("identity")} <= configuration.keys()


@pytest.mark.parametrize(("chosen", "mode"), [(None, "offline"), ("disabled", "disabled")])
def test_wandb_starts_offline_unless_told_otherwise(tmp_path, monkeypatch, chosen, mode):
    """Guards against uploading unasked, and against overriding a mode that the user did set; no process is started."""
    import wandb

    asked = {}
    monkeypatch.setenv("WANDB_MODE", "?")  # so that the present value comes back afterwards
    monkeypatch.delenv("WANDB_MODE") if chosen is None else monkeypatch.setenv("WANDB_MODE", chosen)
    monkeypatch.setattr(wandb, "init", lambda **settings: asked.update(settings, mode=os.environ["WANDB_MODE"]))
    logger = WandbLog(tmp_path, "name", "group")
    logger.experiment  # noqa: B018 (starts the run)
    assert asked["mode"] == mode and asked["project"] == "mull" and asked["dir"] == str(tmp_path)
    assert asked["resume"] == "allow" and WandbLog(tmp_path, "name", "group")._id == asked["id"]
