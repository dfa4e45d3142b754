"""Every YAML of configs/ is a run that works, by the line in its first comment; the reference names every field."""

import inspect
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import LightningDataModule

import mull
from mull.checkpoints import load_tokenizer
from mull.models.families import FAMILIES
from mull.training import capacities, data, iterations, losses, optimizers
from mull.training.cli import read_configuration
from mull.training.data import TaskData, sudoku_pool
from mull.training.run import train

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on workers, epochs and command lines

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
CLUSTER = sorted((ROOT / "configs" / "cluster").glob("*.yaml"))
REFERENCE = ROOT / "configs" / "reference.yaml"
assert CONFIGS and CLUSTER


def comment(config: Path) -> str:
    """The first comment of a file."""
    match = re.match(r"(#.*\n)+", config.read_text())
    assert match, config.name
    return match[0]


def command(config: Path) -> list[str]:
    """The arguments of `mull train` that the first comment of a file gives, its paths made absolute."""
    match = re.search(r"^# Run: (?:torchrun .* -m )?mull train (.*)$", comment(config), re.MULTILINE)
    assert match, config.name
    return [str(ROOT / word) if word.startswith("configs/") else word for word in shlex.split(match[1])]


def without_start(words: list[str]) -> list[str]:
    """The same without the name of a folder to begin from, one that ships with mull."""
    return words[2:] if words[0] == "--from" else words


def small(config: Path, tmp_path: Path) -> list[str]:
    """Overrides that keep what a configuration is and make it tiny."""
    overrides: dict[str, Any] = {
        "output": tmp_path / "run",
        "threads": 1,
        "trainer.max_steps": 2,
        "trainer.val_check_interval": 2,
        "trainer.enable_progress_bar": "false",
        "data.init_args.batch_size": 2,
    }
    if "--from" not in command(config):  # else the sizes are those of the folder
        sizes = {"d_model": 16, "d_ff": 24, "n_heads": 2}
        overrides |= {f"model.network.init_args.config.{name}": size for name, size in sizes.items()}
    base = yaml.safe_load(Path(command(config)[command(config).index("--config") + 1]).read_text())
    if base["model"].get("network", {}).get("class_path") == "mull.Transformer":  # a tower's layers are all alike
        overrides["model.network.init_args.config.n_layers"] = 2
    if base["trainer"].get("accelerator") == "auto":  # for a GPU, of which the easiest items are enough here
        easiest = base["data"]["init_args"]["difficulty"][0]
        overrides |= {"trainer.accelerator": "cpu", "data.init_args.difficulty": easiest}
    if "pool" in base["data"]["init_args"].get("task", {}).get("init_args", {}):
        overrides["data.init_args.task.init_args.pool"] = 1
    quick = ("parity", "sudoku", "halting", "maze", "mod_chain", "p_hop_gpu", "n_ary_addition")
    if config.stem.startswith(quick) and "transformer" not in config.stem:
        overrides["model.validate_at"] = "[1, 4]"  # the measuring would cost more than all the rest
    if config.stem.startswith("reward"):  # behind the shipped reasoner, which is no tiny model
        overrides |= {"model.validate_at": "[1]", "data.init_args.difficulty": 2}
    if config.stem.startswith(("text", "inner_thinking")):
        text = tmp_path / "some.txt"
        text.write_text("".join(f"Line {i} of a text about the number {i * i}.\n" for i in range(1200)))
        overrides |= {
            "data.init_args.paths": f"[{text}]",
            "data.init_args.fields": "null",
            "data.init_args.length": 16,
            "data.init_args.validation_windows": 2,
            "data.init_args.held_out": 0.3,
            "data.init_args.cache": tmp_path / "cache",
        }
    else:
        overrides["data.init_args.validation_examples"] = 2
    return [word for key, value in overrides.items() for word in (f"--{key}", str(value))]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.usefixtures("short_cards")
def test_configuration_trains_saves_loads_and_generates(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A configuration that no longer runs is noticed here and not by the newcomer."""
    real = TaskData.evaluation_batches
    monkeypatch.setattr(TaskData, "evaluation_batches", lambda self, **_: real(self, examples=4))
    monkeypatch.setattr(sudoku_pool, "AT_ONCE", 8)
    monkeypatch.setattr(sudoku_pool, "CACHE", tmp_path / "pools")
    folder = train([*command(config), *small(config, tmp_path)])
    written = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "training.yaml", "depth.json", "README.md"} <= written
    model = mull.load(folder)
    prompt = torch.tensor([load_tokenizer(folder).encode("1 0 1").ids])
    count = None if isinstance(model, mull.Transformer) else 2
    if model.config.causal:
        result = mull.generate(model, prompt, iterations=count, max_new_tokens=2)
        assert result.tokens.shape[1] > prompt.shape[1]
    assert torch.isfinite(model(prompt, iterations=count).logits).all()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_the_first_comment_says_what_to_expect_and_how_to_run(config: Path) -> None:
    """Guards claim, expectation, cost and command, and that the run is kept in a folder of the file's name."""
    said = comment(config)
    assert re.match(r"# (Claim|Baseline of|[a-z_]+\.yaml at)", said)
    assert "Expected:" in said and "Cost:" in said
    words = without_start(command(config))
    assert words[::2] == ["--config"] * (len(words) // 2) and words[-1] == str(config)
    trainer = {}
    for file in words[1::2]:
        trainer |= yaml.safe_load(Path(file).read_text()).get("trainer", {})
    assert trainer["val_check_interval"] <= trainer["max_steps"], "it is never validated"
    assert max(map(len, config.read_text().splitlines())) <= 120


@pytest.mark.parametrize("config", [c for c in CONFIGS if command(c).count("--config") > 1], ids=lambda path: path.stem)
def test_a_variant_says_only_what_differs_from_its_base(config: Path) -> None:
    """Guards the point of a short file: each field in it changes the base, and nothing is repeated."""
    base = leaves(yaml.safe_load(Path(without_start(command(config))[1]).read_text()))
    changes = leaves(yaml.safe_load(config.read_text()))
    assert 0 < len(changes) <= 6
    for path, value in changes.items():
        assert path not in base or base[path] != value, path


@pytest.mark.parametrize("config", CLUSTER, ids=lambda path: path.stem)
def test_what_is_added_for_other_machines_fits_its_run(config: Path, tmp_path: Path) -> None:
    """Guards files for machines that no test has: the line in the first comment is understood, and each field arrives
    where it was meant, but for `accelerator`, which must be there."""
    run = read_configuration([*command(config), "--trainer.accelerator", "cpu", "--output", str(tmp_path / "out")])
    found = leaves(run.resolved)
    for path, value in (leaves(yaml.safe_load(config.read_text())) | {"trainer.accelerator": "cpu"}).items():
        said = {str(step): level for step, level in value.items()} if path.endswith(".curriculum") else value
        assert found[path] == said, path


# ------------------------------------------------------------------------------------------------------- the reference


def leaves(node: Any, path: str = "") -> dict[str, Any]:
    """{path: value} of the fields of a configuration that hold no other fields; an empty path is the whole."""
    if isinstance(node, dict) and node and all(isinstance(key, str) and not key.isdecimal() for key in node):
        return {p: v for key, value in node.items() for p, v in leaves(value, f"{path}.{key}".strip(".")).items()}
    if isinstance(node, list) and any(isinstance(item, dict) for item in node):
        return {p: v for i, item in enumerate(node) for p, v in leaves(item, f"{path}.{i}").items()}
    return {path: node}


def test_the_reference_names_every_field_of_its_run(tmp_path: Path) -> None:
    """Guards against a field without a comment: what the parser resolves is in the file, with equal values."""
    resolved = read_configuration(["--config", str(REFERENCE), "--output", str(tmp_path)]).resolved
    written = leaves(yaml.safe_load(REFERENCE.read_text()))
    assert written.pop("output") is None
    found = {path: {int(k): v for k, v in value.items()} if path.endswith(".curriculum") else value
             for path, value in leaves(resolved).items()}  # fmt: skip
    assert found == written


def test_every_field_of_the_reference_has_a_comment() -> None:
    """Guards the words: each line with a field explains it."""
    written = [line for line in REFERENCE.read_text().splitlines() if re.match(r"\s*(- )?\w+:", line)]
    assert len(written) > 90
    assert [line for line in written if not re.search(r"\S  # \w.*\w", line)] == []


def skeleton(node: Any) -> Any:
    """A configuration with its classes and with what must be given, and nothing else."""
    if isinstance(node, list):
        return [skeleton(item) for item in node]
    kept = {key: value for key, value in node.items() if key == "class_path" or (key == "mean" and "sigma" in node)}
    nested = {k: v for k, v in node.items() if isinstance(v, dict) or (isinstance(v, list) and isinstance(v[0], dict))}
    return kept | {key: skeleton(value) for key, value in nested.items() if key != "curriculum"}


def places(node: yaml.Node, path: str = "") -> Iterator[tuple[str, int]]:
    """(path, line) of every field of a composed YAML file."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield f"{path}.{key.value}".strip("."), key.start_mark.line
            yield from places(value, f"{path}.{key.value}".strip("."))
    elif isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            yield from places(item, f"{path}.{i}")


def test_the_defaults_of_the_reference_are_true(tmp_path: Path) -> None:
    """Guards the brackets: a field that is left out has the value in them, or that of the file where there are none."""
    text, written = REFERENCE.read_text(), leaves(yaml.safe_load(REFERENCE.read_text()))
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(skeleton(yaml.safe_load(text))))
    defaults = leaves(read_configuration(["--config", str(tmp_path / "run.yaml")]).resolved)
    said = {}
    for path, line in places(yaml.compose(text)):
        if path in written and path in defaults and not path.endswith("class_path"):
            bracket = re.search(r"\[([^]]+)\]$", text.splitlines()[line])
            said[path] = yaml.safe_load(bracket[1]) if bracket else written[path]
    assert len(said) > 80
    assert said == {path: defaults[path] for path in said}


def alternatives() -> list[dict[str, Any]]:
    """The commented fragments at the end of the reference."""
    text = REFERENCE.read_text().partition("other classes\n")[2]
    yaml_lines = [line[2:] for line in text.splitlines() if re.match(r"# (---|\s*[\w]+:)", line)]
    return list(yaml.safe_load_all("\n".join(yaml_lines)))


def replace(base: Any, change: Any) -> Any:
    """`change` over `base`; a node whose class changes is replaced as a whole."""
    if not (isinstance(base, dict) and isinstance(change, dict)):
        return change
    if base.get("class_path") != change.get("class_path", base.get("class_path")):
        return change
    return base | {key: replace(base.get(key), value) for key, value in change.items()}


@pytest.mark.parametrize("change", alternatives(), ids=lambda change: "-".join(re.findall(r"\.(\w+)'", str(change))))
def test_the_other_classes_of_the_reference_can_be_taken(change: dict[str, Any], tmp_path: Path) -> None:
    """Guards the commented fragments: each is a configuration that the parser takes, all of its values included."""
    config = replace(yaml.safe_load(REFERENCE.read_text()), change)
    if "ExpectedOverIterations" in str(change) or "HaltOnImprovement" in str(change):
        config["model"]["network"]["init_args"]["config"]["exit_gate"] = True
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    run = read_configuration(["--config", str(tmp_path / "run.yaml"), "--output", str(tmp_path / "out")])
    resolved = leaves(run.resolved)
    assert {path: value for path, value in leaves(change).items() if value != {}}.items() <= resolved.items()


BASES = (iterations.IterationSampler, capacities.CapacitySampler, losses.Loss, optimizers.OptimizerRecipe, data.Task,
         LightningDataModule)  # fmt: skip
LINKED = {"vocab_size", "stop_tokens", "seed"}  # they come from the data and from seed_everything
SHARED = {field.name for field in fields(mull.ModelConfig)}  # written once, in the run itself


def classes() -> list[tuple[str, set[str]]]:
    """(class path, names of its fields) of everything of mull that a class_path can name."""
    found = {
        f"mull.{model.__name__}": {f.name for f in fields(model.config_class)} - SHARED for model in FAMILIES.values()
    }
    for module in (iterations, capacities, losses, optimizers, data):
        for name in getattr(module, "__all__", vars(module)):
            one = getattr(module, name)
            if inspect.isclass(one) and issubclass(one, BASES) and not inspect.isabstract(one):
                found[f"{module.__name__}.{name}"] = set(inspect.signature(one).parameters)
    return sorted(found.items())


def test_the_reference_names_every_class_and_its_fields() -> None:
    """Guards completeness: a new sampler, loss, optimizer, task, family or field must be written down there."""
    fragments = [yaml.safe_load(REFERENCE.read_text()), *alternatives()]
    missing = []
    for class_path, arguments in classes():
        found = [node.get("init_args") or {} for fragment in fragments for node in named(fragment, class_path)]
        written = {key for node in found for key in [*node, *node.get("config", {})]}
        missing += [class_path] * (not found) + [f"{class_path}: {name}" for name in arguments - LINKED - written]
    assert len(classes()) > 15 and missing == []


def named(node: Any, class_path: str) -> Iterator[dict[str, Any]]:
    """All nodes of a configuration with this class path."""
    if isinstance(node, dict):
        if node.get("class_path") == class_path:
            yield node
        for value in node.values():
            yield from named(value, class_path)
    elif isinstance(node, list):
        for value in node:
            yield from named(value, class_path)
