"""The first pages are true: the map is the tree, the example runs, commands and files exist."""

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest

import mull
from mull import cli
from mull.checkpoints.names import shipped
from mull.training.shipped import names

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
MAPPED = ("models", "checkpoints", "inference", "training", "configs", "benchmarks", "docs")


def file_map() -> dict[str, str]:
    """Path -> phrase, from the block under "What is where" of docs/architecture.md."""
    block = re.search(r"## What is where.*?```\n(.*?)```", ARCHITECTURE, re.DOTALL)
    assert block
    found: dict[str, str] = {}
    folders: list[str] = []
    for line in filter(str.strip, block[1].splitlines()):
        indent = (len(line) - len(line.lstrip())) // 2
        name, phrase = re.split(r"\s{2,}", line.strip(), maxsplit=1)
        folders = folders[:indent]
        found["/".join([*folders, name.rstrip("/")])] = phrase
        if name.endswith("/"):
            folders.append(name.rstrip("/"))
    return found


def tree() -> set[str]:
    """What stands in the repository, as deep as the map goes: shipped folders and tests are one entry each."""
    hidden = ("__pycache__", ".egg-info")
    found = {path.name for path in ROOT.iterdir() if not path.name.startswith(".") and path.name != "build"}
    for folder in MAPPED:
        for path in (ROOT / folder).rglob("*"):
            name = path.relative_to(ROOT).as_posix()
            shipped = folder == "checkpoints" and (path / "config.json").exists()
            inside = folder == "checkpoints" and (path.parent / "config.json").exists()
            if shipped or (not inside and "trainer" not in path.parts):
                found.add(name)
    ignored = {"checkpoints/demo", "wandb", "dist"}
    return {name for name in found if not any(part in name for part in hidden) and name not in ignored}


def test_the_map_equals_the_tree() -> None:
    """A file that comes, goes or moves must do so in the map too; every entry has its phrase."""
    assert set(file_map()) == tree()
    assert all(file_map().values())


def test_the_python_example_runs() -> None:
    """The twenty lines work as they stand, on the shipped model."""
    code = re.search(r"## Twenty lines.*?```python\n(.*?)```", README, re.DOTALL)
    assert code
    assert len([line for line in code[1].splitlines() if line.strip()]) <= 20
    namespace: dict[str, object] = {}
    exec(compile(code[1].replace('"checkpoints/', f'"{ROOT}/checkpoints/'), "README.md", "exec"), namespace)
    assert namespace["result"].tokens.shape[0] == 1  # type: ignore[attr-defined]


def commands() -> list[list[str]]:
    """The `mull ...` lines of the README's shell blocks, without comments."""
    blocks = [code for language, code in re.findall(r"^```(\w*)\n(.*?)^```", README, re.DOTALL | re.M) if not language]
    lines = [line.split("  #")[0] for block in blocks for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if re.match(r"(\.venv/bin/)?mull [a-z]", line)]


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_commands_name_what_exists(command: list[str]) -> None:
    """Every command, configuration and flag shown is one that there is."""
    assert command[0] in cli.COMMANDS
    source = Path(cli.__file__).read_text() + (ROOT / "training" / "cli.py").read_text()
    for before, word in pairwise(command):
        if before == "--config":
            assert word in names(), word
        if before in ("generate", "evaluate", "inspect", "chat"):
            assert word in shipped() or word.startswith("checkpoints/") or word == "FOLDER", word
        if word.startswith("--") and "." not in word and word != "--config":
            assert f'"{word}"' in source, word


def test_the_vocabulary_is_there() -> None:
    """One word, one meaning: the table that the code keeps to."""
    for word in (
        "iteration",
        "step",
        "position",
        "prelude, core, coda",
        "state",
        "recurrence depth",
        "exit",
        "capacity",
    ):
        assert f"| {word}" in (ROOT / "docs" / "architecture.md").read_text(), word
    assert mull.__version__ in (ROOT / "pyproject.toml").read_text()
