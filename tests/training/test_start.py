"""What a run is: its data, the weights it starts from, its length. Changes are refused by name; extensions go on."""

from dataclasses import asdict, replace

import lightning.pytorch as pl
import pytest
import torch
import yaml
from torch.utils.data import DataLoader

import mull
from mull.checkpoints import huginn
from mull.checkpoints.files import read_yaml
from mull.cli import main
from mull.training.callbacks import Throughput
from mull.training.data import Parity, TaskData
from mull.training.module import TrainingModule
from mull.training.run import train
from mull.training.start import architecture, check_architecture, read_start

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on workers, epochs and batch sizes


class Broken(Exception):
    """What ends a run in these tests."""


@pytest.fixture(scope="module", autouse=True)
def few_examples():
    real = TaskData.evaluation_batches
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TaskData, "evaluation_batches", lambda self, **_: real(self, examples=4))
        yield


@pytest.fixture(scope="module")
def constant(tmp_path_factory, reliability):
    """The arguments of a run whose learning rate does not fall, and its folder after 6 steps."""
    folder = tmp_path_factory.mktemp("constant")
    args = [*reliability.arguments(folder, {"model": {"decay_share": 0.0}}), str(folder / "out")]
    train(args)
    return args[:-1], folder / "out"


def broken_at(step, patch):
    """Let runs end right after an optimizer step."""

    def ending(self, trainer, *_):  # noqa: ARG001
        if trainer.global_step == step:
            raise Broken

    patch.setattr(Throughput, "on_train_batch_end", ending)


def text_run(folder, reliability, paths):
    data = {"class_path": "mull.training.data.TextData"}
    data["init_args"] = {"paths": paths, "length": 8, "batch_size": 2, "held_out": 0.5, "cache": str(folder / "cache")}
    config = yaml.safe_load(yaml.safe_dump(reliability.BASE)) | {"data": data}
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return ["--config", str(folder / "run.yaml"), "--output", str(folder / "out")]


def test_other_text_in_the_same_place_is_refused_and_the_same_text_elsewhere_is_not(tmp_path, monkeypatch, reliability):
    """Guards the identity of text by its content: between a break and going on, a file changed, moved, or neither."""
    monkeypatch.chdir(tmp_path)
    text = "".join(f"{number} is a number, and a line.\n" for number in range(2000))
    (tmp_path / "text.txt").write_text(text)
    with monkeypatch.context() as patch:
        broken_at(5, patch)
        with pytest.raises(Broken):
            train(text_run(tmp_path, reliability, ["text.txt"]))
    (tmp_path / "text.txt").write_text(text.replace("1999 is", "1999 IS"))
    with pytest.raises(ValueError, match=r"content of the data: [0-9a-f]{64}, now [0-9a-f]{64}") as told:
        train(text_run(tmp_path, reliability, ["text.txt"]))
    assert "\n" not in str(told.value) and not (tmp_path / "out" / "config.json").exists()
    (tmp_path / "text.txt").unlink()
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved" / "other.txt").write_text(text)
    train(text_run(tmp_path, reliability, [str(tmp_path / "moved")]))
    recorded = yaml.safe_load((tmp_path / "out" / "training.yaml").read_text())["identity"]
    assert recorded["mull_version"] == mull.__version__ and len(recorded["data"]) == 64


def test_a_task_that_draws_other_items_is_other_data(monkeypatch):
    """Guards the identity of tasks: options and the code that draws; equal ones have equal keys."""
    key = TaskData(Parity(5), batch_size=3).content_key()
    assert key == TaskData(Parity(5), batch_size=3).content_key()
    assert key != TaskData(Parity(6), batch_size=3).content_key()
    monkeypatch.setattr(Parity, "draw", lambda _, rng, difficulty: 1 - rng.integers(0, 2, difficulty))
    assert key != TaskData(Parity(5), batch_size=3).content_key()


def test_a_finished_run_can_be_made_longer(constant, reliability, tmp_path):
    """Guards extension: 6 steps and then 9 are the 9 steps at once, and neither measures the other's weights."""
    args, folder = constant
    train([*args, str(tmp_path / "whole"), "--trainer.max_steps", "9"])
    train([*args, str(folder), "--trainer.max_steps", "9"])
    assert reliability.outcome(folder) == reliability.outcome(tmp_path / "whole")
    with pytest.raises(ValueError, match=r"trainer\.max_steps: 9, now 8, and 9 steps are done"):
        train([*args, str(folder), "--trainer.max_steps", "8"])


def test_a_schedule_that_has_begun_to_fall_is_not_made_longer(tmp_path, reliability):
    """Guards against steps under another learning rate: one line says why, and what to do."""
    args = [*reliability.arguments(tmp_path, {}), str(tmp_path / "out")]
    train(args)
    with pytest.raises(ValueError, match=r"decay_share 0\.5 step 4, .* had another learning rate; .*--from") as told:
        train([*args, "--trainer.max_steps", "9"])
    assert "\n" not in str(told.value)


def test_starting_from_weights(constant, tmp_path, monkeypatch):
    """Guards --from: the first batch is read by the folder's weights, and the run belongs to them."""
    args, folder = constant
    config = yaml.safe_load((folder.parent / "run.yaml").read_text())
    del config["model"]["network"]  # the architecture is the folder's
    config["data"]["init_args"]["difficulty"] = 6
    (tmp_path / "tune.yaml").write_text(yaml.safe_dump(config))
    tune = ["--config", str(tmp_path / "tune.yaml"), "--output", str(tmp_path / "out")]
    first = []
    real = TrainingModule.training_step

    def noting(self, batch, number):
        first.append({name: value.clone() for name, value in self.network.state_dict().items()})
        return real(self, batch, number)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingModule, "training_step", noting)
        train([*tune, "--from", str(folder)])
    expected = mull.load(folder).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in first[0].items())
    with pytest.raises(FileNotFoundError, match="there is no checkpoint folder"):
        train([*tune, "--from", "checkpoints/none"])
    recorded = yaml.safe_load((tmp_path / "out" / "training.yaml").read_text())
    assert len(recorded["identity"]["from"]) == 64 and recorded["identity"]["from_folder"] == str(folder)
    assert recorded["model"]["network"]["init_args"]["config"]["d_model"] == 16
    assert mull.load(tmp_path / "out").config == mull.load(folder).config
    with pytest.raises(ValueError, match=rf"config\.d_model is 32, and 16 in {folder}; leave it out") as told:
        train([*args, str(tmp_path / "x"), "--from", str(folder), "--model.network.init_args.config.d_model", "32"])
    assert "\n" not in str(told.value) and not (tmp_path / "x").exists()


def test_what_matters_in_training_only_may_be_set_anew(constant):
    """Guards fine-tuning with noise: it contradicts no folder, while a field that an answer depends on does."""
    start = read_start(str(constant[1]))
    network = {"class_path": "mull.RecurrentDepthTransformer"}
    check_architecture(start, network | {"init_args": {"config": {**architecture(start), "state_noise": 0.2}}})
    with pytest.raises(ValueError, match=r"config\.damping is 0\.5, and 1\.0 in "):
        check_architecture(start, network | {"init_args": {"config": {**architecture(start), "damping": 0.5}}})


def test_going_on_needs_the_same_weights(constant, tmp_path, monkeypatch):
    """Guards the identity of a run that was broken: without --from, or with other weights, it is another run."""
    args, folder = constant
    args = [*args, str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        broken_at(3, patch)
        with pytest.raises(Broken):
            train([*args, "--from", str(folder)])
    with pytest.raises(ValueError, match=r"weights of --from: [0-9a-f]{64}, now None"):
        train(args)
    other = mull.load(folder)
    with torch.no_grad():
        other.final_norm.weight.mul_(2)
    mull.save(other, tmp_path / "other")
    with pytest.raises(ValueError, match=r"weights of --from: [0-9a-f]{64}, now [0-9a-f]{64}"):
        train([*args, "--from", str(tmp_path / "other")])
    train([*args, "--from", str(folder)])
    assert (tmp_path / "out" / "config.json").exists()


def test_starting_from_a_public_folder_with_a_padded_vocabulary(constant, tmp_path):
    """Guards converted models: the layout, its shapes and its vocabulary beyond the tokenizer's are taken over."""
    args, folder = constant
    model = mull.load(folder)
    wide = type(model)(replace(model.config, vocab_size=32))
    huginn.write(wide, tmp_path / "public")
    train([*args, str(tmp_path / "out"), "--from", str(tmp_path / "public")])
    tuned = mull.load(tmp_path / "out")
    assert asdict(tuned.config) == asdict(wide.config)
    tokens = {name: number + 1 for name, number in Parity(5).tokenizer.get_vocab().items()}
    mull.save(wide, tmp_path / "shifted", tokenizer=type(Parity(5).tokenizer)(shifted(tokens)))
    with pytest.raises(ValueError, match=r"the token '.*' is \d in the data and \d in .*shifted; name the task"):
        train([*args, str(tmp_path / "y"), "--from", str(tmp_path / "shifted")])


def shifted(vocabulary):
    from tokenizers.models import WordLevel

    return WordLevel(vocabulary, unk_token="<unk>")


def test_a_tilde_is_the_home_folder_everywhere(constant, tmp_path, monkeypatch):
    """Guards --output=~/x, which a shell leaves as it is: one folder for everything, and the others follow."""
    args, folder = constant
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    train([*args[:-1], "--output=~/out", "--from", str(folder)])
    assert {"config.json", "depth.json", "trainer"} <= {path.name for path in (tmp_path / "out").iterdir()}
    mull.save(mull.load("~/out"), "~/copy")
    assert main(["convert", "~/copy", "~/public"]) == 0 and (tmp_path / "public" / "config.json").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"out", "copy", "public"}


class Ending(pl.LightningDataModule):
    """Data that ends: two epochs of it are eight batches of parity."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.inner = TaskData(Parity(5), batch_size=3, validation_examples=6, seed=seed)
        self.vocab_size, self.stop_tokens, self.tokenizer = self.inner.vocab_size, self.inner.stop_tokens, None
        self.bytes_per_token = None

    def train_dataloader(self):
        return DataLoader([self.inner.training_batch(number) for number in range(4)], batch_size=None)

    def val_dataloader(self):
        return self.inner.val_dataloader()


def test_epochs_are_counted_where_data_ends_and_refused_where_it_does_not(tmp_path, reliability, capsys):
    """Guards max_epochs: it ends and finishes a run, and the learning rate has fallen by then."""
    args = reliability.arguments(tmp_path, {"trainer": {"max_epochs": 2, "val_check_interval": 4}})
    with pytest.raises(ValueError, match=r"trainer\.max_epochs is 2, and the data of TaskData never ends; .*max_steps"):
        train([*args, str(tmp_path / "out")])
    config = yaml.safe_load((tmp_path / "run.yaml").read_text())
    config["data"] = {"class_path": f"{__name__}.Ending"}
    config["trainer"]["max_steps"] = -1
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    train([*args, str(tmp_path / "out")])
    state = torch.load(tmp_path / "out" / "trainer" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 8 and state["mull"]["finished"]
    assert state["optimizer_states"][0]["param_groups"][0]["lr"] == 0 and (tmp_path / "out" / "config.json").exists()
    train([*args, str(tmp_path / "out")])
    assert "holds the finished run" in capsys.readouterr().out


def test_few_batches_over_and_over_are_trained_on_or_refused(tmp_path, reliability):
    """Guards trainer.overfit_batches against silence: it is taken, or refused where endless data has no such thing."""
    args = reliability.arguments(tmp_path, {"trainer": {"overfit_batches": 2, "val_check_interval": 2}})
    with pytest.raises(ValueError, match=r"overfit_batches is the share 0\.5, .* never ends; give a number of batches"):
        train([*args, str(tmp_path / "out"), "--trainer.overfit_batches=0.5"])
    mastered = "{class_path: mull.training.data.ReachedAccuracy, init_args: {accuracy: 0.9}}"
    options = ["--data.init_args.difficulty=[7, 9]", f"--data.init_args.advance={mastered}"]
    with pytest.raises(ValueError, match=r"overfit_batches is 2, and data.init_args.advance .*: leave one of them out"):
        train([*args, str(tmp_path / "out"), *options])
    with pytest.raises(ValueError, match=r"overfit_batches is 2, and data.init_args.repeat .*: leave one of them out"):
        train([*args, str(tmp_path / "out"), "--data.init_args.repeat=2"])
    with pytest.raises(ValueError, match=r"trainer.val_check_interval 400, in an epoch of 2: give"):
        train([*args, str(tmp_path / "out"), "--trainer.val_check_interval=400"])
    assert not (tmp_path / "out").exists()
    train([*args, str(tmp_path / "out")])
    losses = (tmp_path / "out" / "trainer" / "logs" / "version_0" / "metrics.csv").read_text()
    assert "train/loss" in losses and (tmp_path / "out" / "config.json").exists()


LATE = "[{class_path: EMAWeightAveraging, init_args: {update_starting_at_step: 8}}]"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--trainer.limit_train_batches=1e20"],
            r"limit_train_batches is 1e\+20, above 9,223,372,036,854,775,807",
        ),
        (
            ["--trainer.callbacks+=Timer"],
            "<Interval.step: 'step'>, which a class has by itself, cannot be kept in a file: give",
        ),
        (["--trainer.callbacks+=BatchSizeFinder"], "BatchSizeFinder changes what a run is as it trains: leave it out"),
        (
            ["--trainer.callbacks+=StochasticWeightAveraging", "--trainer.callbacks.swa_lrs=0.1"],
            "take EMAWeightAveraging",
        ),
        (
            ["--trainer.callbacks+=GradientAccumulationScheduler", "--trainer.callbacks.scheduling={1: 2}"],
            "train on batches again, .*: leave it out, and set trainer.accumulate_grad_batches",
        ),
        (
            ["--trainer.max_steps=8", f"--trainer.callbacks={LATE}"],
            "averages at none of the 8 steps, 0 to 7, and the initial weights would be exported",
        ),
        (
            ["--trainer.callbacks+=LearningRateFinder"],
            "LearningRateFinder changes what a run is as it trains: leave",
        ),
    ],
)
def test_what_a_trainer_of_others_takes_and_a_run_cannot_is_refused(options, said, tmp_path, reliability):
    """Guards the start against errors that end a training later, and a run against fields that change as it trains."""
    with pytest.raises(ValueError, match=said):
        train([*reliability.arguments(tmp_path, {}), str(tmp_path / "out"), *options])
    assert not (tmp_path / "out").exists()


def test_a_name_that_is_no_utf8_is_kept(tmp_path, reliability):
    """Guards the record of a run, which comes through YAML: libyaml does not read such names."""
    name = str(tmp_path / "x\udcff")
    folder = train([*reliability.arguments(tmp_path, {}), str(tmp_path / "run"), "--trainer.default_root_dir", name])
    assert read_yaml(folder / "training.yaml")["trainer"]["default_root_dir"] == name
