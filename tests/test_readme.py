"""The first page is short, and the map of the tree is true; what pages show and name is in test_docs.py."""

import re
from pathlib import Path

import mull

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
MAPPED = ("models", "checkpoints", "inference", "training", "configs", "benchmarks", "docs")


def file_map() -> dict[str, str]:
    """Path -> phrase, from the block under "What is where" of docs/architecture.md."""
    block = re.search(r"## What is where.*?```text\n(.*?)```", ARCHITECTURE, re.DOTALL)
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
    ignored = {"checkpoints/demo", "wandb", "dist", "site"}
    return {name for name in found if not any(part in name for part in hidden) and name not in ignored}


def test_the_map_equals_the_tree() -> None:
    """A file that comes, goes or moves must do so in the map too; every entry has its phrase."""
    assert set(file_map()) == tree()
    assert all(file_map().values())


def test_the_readme_is_short_and_so_is_its_example() -> None:
    """Guards the length of the first page, and of the twenty lines of docs/index.md; test_docs.py runs both."""
    code = re.search(r"## Twenty lines.*?```python\n(.*?)```", (ROOT / "docs" / "index.md").read_text(), re.DOTALL)
    assert code and len([line for line in code[1].splitlines() if line.strip()]) <= 20
    assert len(README.split()) <= 1000


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
