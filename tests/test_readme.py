"""The first page is short, its table of models says what was measured, and the map of the tree is true; what pages show
and name is in test_docs.py."""

import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from mull.checkpoints import store
from mull.checkpoints.names import SHIPPED, shipped
from mull.cli import COMMANDS

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


def shipped_models() -> dict[str, tuple[str, str]]:
    """Folder -> what it does and what was measured, from the table of README.md."""
    rows = re.findall(r"^\| `checkpoints/([\w-]+)` \| (.*?) \| (.*?) \|$", README, re.MULTILINE)
    return {name: (what, measured) for name, what, measured in rows}


Asked = tuple[str, int | None, int]  # a column of depth.json, difficulty and iterations

# Folder -> parts of its "measured" cell, each `{}` a number, and where these stand in the folder's depth.json
MEASURED: dict[str, list[tuple[str, list[Asked]]]] = {
    "parity": [
        (
            "rows of 256, trained on at most 32: {}, {}, {} % of bits at 32, 64, 128 iterations",
            [("accuracy", 256, count) for count in (32, 64, 128)],
        )
    ],
    "state_tracking": [
        (
            "rows of 256 all right, trained on at most 32: {}, {}, {} % at 64, 128, 256 iterations",
            [("exact_match", 256, count) for count in (64, 128, 256)],
        )
    ],
    "maze": [
        (
            "mazes of side 31, trained on at most 15, right: {}, {}, {} % at 64, 128, 512 iterations",
            [("exact_match", 31, count) for count in (64, 128, 512)],
        )
    ],
    "sudoku": [
        (
            "boards with 18, 22, 25 blanks solved: {}, {}, {} % at 1 iteration, {}, {}, {} % at 4",
            [("exact_match", blanks, count) for count in (1, 4) for blanks in (18, 22, 25)],
        )
    ],
    "sudoku_9x9": [
        (
            "boards with 54 blanks solved: {}, {}, {}, {} % at 4, 8, 16, 1,024 iterations",
            [("exact_match", 54, count) for count in (4, 8, 16, 1024)],
        )
    ],
    "text": [
        (
            "held-out bits per byte {}, {}, {} at 1, 2, 8 iterations",
            [("bits_per_byte", None, count) for count in (1, 2, 8)],
        )
    ],
    "inner-thinking": [("at 4 passes for all bytes, {} for 70 %", [("bits_per_byte", None, 4)])],
}
# The two others say how often texts are right that the model writes by itself, which `mull compare` measures and no
# depth.json holds: parts of the cell, and where the page or the card that it is taken from says the same.
WRITTEN = {
    "reasoner": (
        "{} % answered at once, {} % after a draft, {} % after every step",
        ROOT / "docs" / "results.md",
        r"\*\*Chains of modular arithmetic\*\*.*?"
        + r".*?".join(rf"^\| {style} \| ([\d.]+), " for style in ("direct", "draft", "chain")),
    ),
    "reasoner_values": (
        "of 8 operations answered right at once: {}, {}, {} % at 1, 4, 8 iterations",
        SHIPPED / "reasoner_values" / "README.md",
        r"of chains of 8 operations ([\d.]+), ([\d.]+), ([\d.]+) and [\d.]+ % are right at 1, 4, 8 and 16 iterations",
    ),
}


def numbers(pattern: str, cell: str) -> list[str]:
    """The numbers that stand in a text where a pattern has `{}`; empty where the text has no such part."""
    found = re.search(re.escape(pattern).replace(r"\{\}", r"(\d+(?:\.\d+)?)"), cell)
    return [] if found is None else list(found.groups())


def rounded_as(written: str, value: float) -> str:
    """A value with as many digits as were written."""
    return f"{value:.{-int(Decimal(written).as_tuple().exponent)}f}"


def measured(rows: list[dict[str, Any]], asked: Asked) -> float:
    """What the rows of a depth.json say, shares in percent."""
    column, difficulty, count = asked
    (row,) = [row for row in rows if (row["difficulty"], row["iterations"]) == (difficulty, count)]
    return float(row[column]) * (1 if column == "bits_per_byte" else 100)


@pytest.mark.parametrize("folder", MEASURED)
def test_the_table_of_models_says_what_was_measured(folder: str) -> None:
    """Guards the first page's numbers against the depth.json of the folders, digit by digit."""
    rows = json.loads((SHIPPED / folder / "depth.json").read_text())["rows"]
    for pattern, asked in MEASURED[folder]:
        written = numbers(pattern, shipped_models()[folder][1])
        assert len(written) == len(asked), pattern
        assert written == [
            rounded_as(number, measured(rows, place)) for number, place in zip(written, asked, strict=True)
        ]


@pytest.mark.parametrize("folder", WRITTEN)
def test_the_table_of_models_says_what_came_of_writing(folder: str) -> None:
    """Guards the numbers that no depth.json holds: they are those of the page or card that has the command."""
    pattern, page, source = WRITTEN[folder]
    found = re.search(source, page.read_text(), re.DOTALL | re.MULTILINE)
    assert found
    written = numbers(pattern, shipped_models()[folder][1])
    assert written == [rounded_as(number, float(value)) for number, value in zip(written, found.groups(), strict=True)]


def test_the_table_of_models_has_every_folder_and_its_size() -> None:
    """Guards the table against a folder that comes or goes, and against a size that is another model's."""
    assert list(shipped_models()) and {*shipped_models()} == {*MEASURED, *WRITTEN} == {*shipped()}
    for folder, (what, _) in shipped_models().items():
        config, _ = store.read_config(SHIPPED / folder)
        assert f"{round(config.parameters, -3):,} parameters" in what, folder


VOCABULARY = (
    "iteration, iterations",
    "step",
    "segment",
    "position",
    "prelude, core, coda",
    "state",
    "recurrence depth",
    "exit",
    "halt",
    "capacity",
    "pass",
    "reading",
)


def test_the_vocabulary_is_there() -> None:
    """One word, one meaning: the table that the code keeps to has all twelve, each once and with its meaning."""
    table = re.search(r"## Vocabulary\n\n\| word \| meaning \|\n\|[-|]+\n((?:\|.*\n)+)", ARCHITECTURE)
    assert table
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in table[1].splitlines()]
    assert tuple(word.replace("`", "") for word, _ in rows) == VOCABULARY
    assert all(meaning for _, meaning in rows)


def test_every_command_is_on_a_page() -> None:
    """Guards the pages against a command that comes and is told nowhere; that those which are told exist, test_docs.py
    guards."""
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    told = {word for page in pages for word in re.findall(r"\bmull ([a-z][a-z-]*)", page.read_text())}
    assert set(COMMANDS) - told == set() and len(COMMANDS) > 10
