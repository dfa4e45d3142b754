"""Classes of one's own: trained by class path, and instantiated for a folder only after the user's explicit word."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from mull.checkpoints import plugins
from mull.cli import main
from mull.training.data import TaskData
from mull.training.description import build, keyed
from mull.training.evaluation import data_of

PLUGIN = '''
"""A task, a sampler and a loss of one's own; it leaves a mark where it is imported."""

from pathlib import Path

import numpy as np

from mull.training.data import Task
from mull.training.iterations import IterationSampler
from mull.training.losses import LastIteration

Path("imported").touch()


class Echo(Task):
    """Say each bit again."""

    name = "echo"
    difficulty_name = "length"
    symbols = ("0", "1")
    stop_symbols = ()

    def __init__(self, length: int = 4) -> None:
        self.default_difficulty = length

    def draw(self, rng, difficulty):
        return rng.integers(0, 2, difficulty)

    def lay_out(self, items, difficulty):
        return items.astype(np.int64), items.astype(np.int64)

    def check(self, prompt, answer):
        return answer.split() == prompt.split()[-1:]


class Twice(IterationSampler):
    """Twice the mean."""

    def draw(self, rng, index, batch_size):
        return np.asarray(2 * self.mean)


class Doubled(LastIteration):
    """Twice the cross entropy."""

    def __call__(self, output, labels):
        return 2 * super().__call__(output, labels)
'''
RUN = yaml.safe_load(
    """
save_every: 2
trainer: {max_steps: 2, accelerator: cpu, enable_progress_bar: false, log_every_n_steps: 1}
model:
  network:
    class_path: mull.RecurrentDepthTransformer
    init_args: {config: {d_model: 16, n_heads: 2, d_ff: 16, mean_iterations: 2, max_length: 16}}
  iterations: {class_path: mine.Twice, init_args: {mean: 2}}
  loss: {class_path: mine.Doubled}
data:
  class_path: mull.training.data.TaskData
  init_args:
    task: {class_path: mine.Echo, init_args: {length: 8}}
    curriculum: {1: 4}
    batch_size: 3
    validation_examples: 6
"""
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where mine.py lies, with a run of it in `run`, trained by a fresh process that found it there."""
    place = tmp_path_factory.mktemp("own")
    (place / "mine.py").write_text(PLUGIN)
    (place / "run.yaml").write_text(yaml.safe_dump(RUN))
    line = ["train", "--plugin", "mine", "--config", "run.yaml", "--output", "run"]
    # -P: Python itself does not look for modules in the working directory
    done = subprocess.run([sys.executable, "-P", "-m", "mull", *line], cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (place / "imported").unlink()  # it was imported: there is a mark to look for
    return place


@pytest.fixture(autouse=True)
def clean(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No module stays named or imported from one test to the next."""
    monkeypatch.setattr(plugins, "NAMED", set())
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("mine", None)
    (trained / "imported").unlink(missing_ok=True)


def evaluate(*words: str) -> int:
    return main(["evaluate", "run", "--examples", "4", "--iterations", "2", "--json", *words])


def test_classes_of_ones_own_train_by_class_path(trained: Path) -> None:
    """Guards the plugin of a training: task, sampler and loss are the user's, and the depth is measured with them."""
    log = (trained / "run" / "trainer" / "logs" / "version_0" / "metrics.csv").read_text().splitlines()
    columns = [dict(zip(log[0].split(","), row.split(","), strict=True)) for row in log[1:]]
    assert {row["train/iterations"] for row in columns if row["train/loss"]} == {"4.0"}
    assert float(columns[0]["train/loss"]) > 1.6  # twice ln 3, about, where once is 1.1
    rows = json.loads((trained / "run" / "depth.json").read_text())["rows"]
    assert {row["difficulty"] for row in rows} == {8}


def test_a_folder_is_not_taken_at_its_word(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against code of strangers: without --plugin the class is refused in one line, and nothing is imported."""
    monkeypatch.chdir(trained)
    monkeypatch.syspath_prepend(str(trained))  # it could be imported
    assert evaluate() == 2
    said = capsys.readouterr().err
    assert "names the class mine.Echo, which is not mull's; name its module with --plugin mine if you trust it" in said
    assert len(said.strip().splitlines()) == 1 and "training.yaml" in said
    assert "mine" not in sys.modules and not (trained / "imported").exists()


@pytest.mark.parametrize("plugin", ["mine", "./mine.py"])
def test_a_named_module_is_trusted(
    plugin: str, trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards --plugin, as a module of the working directory and as a file, and the same word in Python."""
    monkeypatch.chdir(trained)
    assert evaluate("--plugin", plugin) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["difficulty"] == 8
    assert main(["inspect", "run", "--plugin", plugin]) == 0
    assert data_of("run", plugins=[plugin]).task.name == "echo"


@pytest.mark.parametrize(
    ("plugin", "content", "says"),
    [
        ("nowhere", None, "plugin nowhere cannot be imported (ModuleNotFoundError"),
        ("./nowhere.py", None, "plugin ./nowhere.py is no file"),
        ("./broken.py", "1 / 0", "plugin ./broken.py cannot be imported (ZeroDivisionError: division by zero)"),
        ("./json.py", "", "plugin ./json.py has the name of another module"),
    ],
)
@pytest.mark.parametrize("command", [["inspect", "."], ["train", "--config", "run.yaml"]], ids=["inspect", "train"])
def test_a_plugin_that_cannot_be_imported_is_one_line(
    command: list[str],
    plugin: str,
    content: str | None,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Guards the message: it comes before the folder or the configuration is read, neither of which is there."""
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path(plugin).write_text(content)
    assert main([*command, "--plugin", plugin]) == 2
    said = capsys.readouterr().err
    assert says in said and len(said.strip().splitlines()) == 1


def test_no_file_loads_a_plugin(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards the explicit word: the run records no plugin, and a configuration that names one is refused."""
    monkeypatch.chdir(trained)
    assert "plugin" not in yaml.safe_load(Path("run/training.yaml").read_text())
    own = {"plugin": "mine", "model": {"network": RUN["model"]["network"]}, "data": TASK}
    Path("named.yaml").write_text(yaml.safe_dump(own))
    assert main(["train", "--config", "named.yaml", "--output", "other"]) == 2
    assert "on the command line, in full: --plugin mine" in capsys.readouterr().err
    assert "mine" not in sys.modules and not Path("other").exists()


# -------------------------------------------------------------------------------------------------- what is built

TASK: dict[str, Any] = {
    "class_path": "mull.training.data.TaskData",
    "init_args": {
        "task": {"class_path": "mull.training.data.Parity", "init_args": {"length": 8}},
        "difficulty": [4, 8],
        "curriculum": {"150": 4},  # as a resolved configuration has it
    },
}


def changed(**arguments: Any) -> dict[str, Any]:
    return {**TASK, "init_args": {**TASK["init_args"], **arguments}}


def test_a_description_of_mull_is_built() -> None:
    """Guards the ordinary case, and the conversion of what YAML cannot say."""
    built = build(changed(seed=3), TaskData)
    assert build(changed(difficulty=None), TaskData).difficulties == [8], "null where it means something"
    assert isinstance(built, TaskData) and built.task.default_difficulty == 8
    assert built.curriculum == {150: 4} and built.difficulties == [4, 8]
    said = [{"1": {"2.5": "3"}, "4": {}}]
    assert keyed("said", said, list[dict[int, dict[float, Any]]] | None) == [{1: {2.5: "3"}, 4: {}}]


@pytest.mark.parametrize(
    ("description", "says"),
    [
        ({"class_path": "os.path.Data"}, "names the class os.path.Data, which is not mull's; .* --plugin os.path "),
        ({"class_path": "Data"}, "names the class Data, which is not mull's"),
        ({"class_path": "mullet.Data"}, "names the class mullet.Data"),
        ({"class_path": ["x"]}, "not mull's"),
        (changed(task={"class_path": "evil.Task"}), "names the class evil.Task"),
        (changed(difficulty=[1, {"class_path": "evil.Task"}]), "names the class evil.Task"),
        (changed(other={"deep": [{"class_path": "evil.Task"}]}), "names the class evil.Task"),
        (changed(task="evil.Task"), "the argument task needs a class_path, not 'evil.Task'"),
        (changed(task="{class_path: evil.Task}"), "the argument task needs a class_path"),
        (changed(batch_size="evil.Task"), "batch_size"),
        (changed(batch_size={"class_path": "mull.training.data.Parity"}), "argument batch_size declares no class"),
        (changed(task={"class_path": "mull.training.data.TextData"}), "TextData is no Task"),
        (changed(other=1), "does not take these arguments"),
        (
            changed(batch_size=None),
            r"the argument batch_size of mull.* must not be null; leave it out, or give a value",
        ),
        (changed(task=None), "the argument task of .* must not be null"),
        (
            changed(task={"class_path": "mull.training.data.Parity", "init_args": {"length": None}}),
            "the argument length of mull.training.data.Parity must not be null",
        ),
        ({"class_path": "mull.training.cli.TrainingCLI"}, "TrainingCLI is no TaskData"),
        ({"class_path": "mull.training.saving.Timer"}, "names the class lightning.*, which is not mull's"),
        ({"class_path": "mull.training.run.train"}, "is no class"),
        ({"class_path": "mull.training.nowhere.Data"}, "cannot be found"),
    ],
)
def test_what_is_not_trusted_or_does_not_fit_is_refused(
    description: dict[str, Any], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards every depth and spelling in which a class can be named; the modules named are never imported."""
    for name in ("evil", "mullet"):
        (tmp_path / f"{name}.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match=says):
        build(description, TaskData)
    assert not {"evil", "mullet"} & set(sys.modules)
