"""A cell of a comparison: one folder, strategy, iteration count and difficulty, with what became of every problem.

A comparison is kept as cells, problem by problem, because all it says is said of the same problems: differences,
exchange rates and envelopes are paired, and can be worked out anew from the cells without measuring again. Each
finished cell is one file, written whole or not at all, with a checksum of its contents; a file that is damaged is as
good as none, and its cell is measured anew.

    DIR/cells/settings.json               what all cells have in common: problems, seed, how is written
    DIR/cells/servers.json                the iteration count of each model behind an endpoint, as its server said
    DIR/cells/majority_8-4-1f0c....json   a cell; its name ends with a key of what it is a cell of
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mull.checkpoints.files import read_bytes, shown
from mull.checkpoints.replacing import complete, replace_all
from mull.inference.strategies.contract import choose_strategy

CELLS, SETTINGS, SERVERS = "cells", "settings.json", "servers.json"
FORMAT = 1
MAX_BYTES = 256 << 20  # of a cell's file
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Place:
    """What a cell is a cell of.

    Attributes:
        folder: the checkpoint folder, or the model behind an endpoint, as it was named.
        key: of the weights, and of what else the strategy goes by, so that a folder which was trained again is measured
            again; "" where nobody can say.
        strategy: as written on the command line.
        iterations: of every token; None for a model without a loop.
        difficulty: of the problems; None where they have none.
    """

    folder: str
    key: str
    strategy: str
    iterations: int | None
    difficulty: int | None

    @property
    def file(self) -> str:
        """The name of the cell's file: something to read, and a hash that tells all places apart."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]
        words = [self.strategy, *(str(each) for each in (self.iterations, self.difficulty) if each is not None)]
        return f"{re.sub(r'[^a-z0-9]+', '_', '-'.join(words).lower())[:60]}-{digest}.json"

    def __str__(self) -> str:
        said = f"{self.folder}, {self.strategy}"
        plural = "" if self.iterations == 1 else "s"
        said += "" if self.iterations is None else f", {self.iterations} iteration{plural}"
        return said if self.difficulty is None else f"{said}, difficulty {self.difficulty}"


@dataclass(frozen=True)
class Answered:
    """What became of one problem.

    Attributes:
        right: whether the exact checker takes the answer.
        flops: as executed; None where nobody can count them.
        tokens: written, those of candidates that were dropped included.
        calls: of the model.
        seconds: it took.
        answer: what was answered.
        text: what was written, trace and answer, by which the metrics of papers go.
        labels: whether the right answer could still be reached after each step of the text; None where nobody says.
        samples: whether each of the answers among which the strategy chose is right; None where it had one only.
        thinking: tokens of the thinking in the text; None in cells that were kept before it was told.
    """

    right: bool
    flops: float | None
    tokens: int
    calls: int
    seconds: float
    answer: str = ""
    text: str = ""
    labels: tuple[bool, ...] | None = None
    samples: tuple[bool, ...] | None = None
    thinking: int | None = None


@dataclass(frozen=True)
class Cell:
    """A place, and what became of each problem there, in the order of the problems.

    Attributes:
        place: see `Place`.
        problems: a key of the problems; only cells of one key can be paired.
        answered: one for each problem.
        ceiling: whether the strategy asked the exact checker, so that nobody can have what it reaches.
        samples: how many answers the strategy draws; None where that is not its knob.
        style: how a single answer of it is written (direct, chain, ...); None where it has styles of its own.
        limits: the least and the most tokens that the strategy was told to think; None where it was told none.
    """

    place: Place
    problems: str
    answered: tuple[Answered, ...]
    ceiling: bool = False
    samples: int | None = None
    style: str | None = None
    limits: tuple[float | None, float | None] = (None, None)

    @property
    def right(self) -> Floats:
        return np.array([each.right for each in self.answered], dtype=float)

    @property
    def tokens(self) -> Floats:
        return np.array([each.tokens for each in self.answered], dtype=float)

    @property
    def flops(self) -> Floats | None:
        """FLOPs of each problem; None where one of them was not counted."""
        counted = [each.flops for each in self.answered]
        known = [flops for flops in counted if flops is not None]
        return np.array(known, dtype=float) if len(known) == len(counted) else None


class Cells:
    """The finished cells of a comparison, in its folder.

    Args:
        folder: of the comparison.
        settings: what all its cells have in common, as JSON has it. A folder that holds cells with others is refused.

    Raises:
        ValueError: the folder holds a comparison with other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder / CELLS
        self.settings = json.loads(json.dumps({"format": FORMAT, **settings}))
        if self.folder.is_dir():
            complete(self.folder)
        kept = self.kept_settings()
        self.vouched = kept == self.settings  # settings that cannot be read vouch for no cell beside them
        if kept is not None and not self.vouched:
            name = next(name for name in {**kept, **self.settings} if kept.get(name) != self.settings.get(name))
            was, asked = shown(kept.get(name)), shown(self.settings.get(name))
            raise ValueError(
                f"{folder} holds a comparison with {name} {was}, and {asked} is asked for: its cells cannot be "
                "compared with others; give the same, or name another --output"
            )

    def kept_settings(self) -> dict[str, Any] | None:
        """The settings of the cells that are there; None where there are none, or where they cannot be read."""
        return self.read(SETTINGS)

    def read(self, name: str) -> dict[str, Any] | None:
        """The object of a file beside the cells; None where there is none, or one that cannot be read."""
        try:
            found = json.loads(read_bytes(self.folder / name, MAX_BYTES))
        except (OSError, ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) else None

    def count_of(self, server: str) -> int | None:
        """The iteration count that a model behind an endpoint was trained at, as its server said when a cell of it was
        kept; None where it has no loop, or nothing is kept of it."""
        found = (self.read(SERVERS) or {}).get(server)
        return found if type(found) is int else None

    def keep_count(self, server: str, count: int | None) -> None:
        """Keep what a server said, so that nobody has to ask it where all cells are finished."""
        if self.count_of(server) != count:
            replace_all(self.folder, {SERVERS: json.dumps({**(self.read(SERVERS) or {}), server: count}).encode()})

    def find(self, place: Place, problems: str) -> Cell | None:
        """The finished cell of a place; None where there is none, or one that is damaged, of other problems, or of
        settings that nobody knows."""
        if not self.vouched:
            return None
        try:
            cell = read_cell(read_bytes(self.folder / place.file, MAX_BYTES))
        except (OSError, ValueError):
            return None
        return cell if cell.place == place and cell.problems == problems else None

    def keep(self, cell: Cell) -> None:
        """Write a finished cell, whole or not at all."""
        if self.kept_settings() != self.settings:
            old = [each.name for each in self.folder.glob("*.json")] if self.folder.is_dir() else []
            replace_all(self.folder, {SETTINGS: json.dumps(self.settings, indent=2).encode()}, old)
            self.vouched = True
        replace_all(self.folder, {cell.place.file: write_cell(cell)})


def write_cell(cell: Cell) -> bytes:
    """A cell as the contents of its file."""
    body = json.dumps(asdict(cell), allow_nan=False)
    return json.dumps({"sha256": hashlib.sha256(body.encode()).hexdigest(), "cell": body}).encode()


def read_cell(data: bytes) -> Cell:
    """The cell of a file's contents. Raises ValueError where they are damaged."""
    try:
        found = json.loads(data)
        body = found["cell"]
        if hashlib.sha256(body.encode()).hexdigest() != found["sha256"]:
            raise ValueError("its checksum is another")
        values = json.loads(body)
        answered = tuple(
            Answered(**{name: as_tuple(value) for name, value in each.items()}) for each in values["answered"]
        )
        own = {field.name: values[field.name] for field in fields(Cell)}
        own["limits"] = as_tuple(own["limits"])
        return Cell(**{**own, "place": Place(**values["place"]), "answered": answered})
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"this is no cell of a comparison: {error}") from error


def as_tuple(value: Any) -> Any:
    """A list as a tuple; anything else as it is."""
    return tuple(value) if isinstance(value, list) else value


@cache
def family_of(strategy: str, *knobs: str) -> str:
    """The name of strategies that differ in their first number only, however they are written: majority:N,style=draft
    for majority:8,style=draft and majority,style=draft,n=4. `knobs` are further fields in which they may differ."""
    chosen = choose_strategy(strategy)
    own = [each for each in fields(chosen) if each.repr]
    number = next((each for each in own if isinstance(getattr(chosen, each.name), int | float)), None)
    words = [f"{chosen.name}:N" if own and number is own[0] else chosen.name]
    for each in own:
        value = getattr(chosen, each.name)
        if each is number:
            words += [] if each is own[0] else [f"{each.name}=N"]
        elif value != each.default:
            words.append(f"{each.name}={each.name[0].upper() if each.name in knobs else value}")
    return ",".join(words)
