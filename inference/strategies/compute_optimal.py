"""Compute-optimal: of the given strategies the one that measured best on such problems at such a budget (Snell et al.,
arXiv 2408.03314; Liu et al., arXiv 2502.06703).

    theta*(N, bin) = argmax over theta with cost(theta) <= N of  accuracy(theta | bin)

theta is a strategy and an iteration count, and the table is what `mull compare` wrote, on problems that are held out:
its rows say strategy, iterations, difficulty, accuracy and FLOPs a problem. Those of the oracle, a ceiling, are left
out, and those of this strategy itself. Bins are absolute, by the share of problems that one text solves (Pass@1), which
is that of the strategy `reference` (chain, say) at its best iteration count:

    easy 50 % to 100 %     medium 10 % to 50 %     hard 0 % to 10 %

The difficulties of a bin share a choice, by their mean accuracy. A problem of a difficulty that was not measured is of
the bin of the nearest one that was; where the difficulty is not known, all bins share one choice. Ties go to the
cheaper.

Deviations: the papers estimate Pass@1 of each problem from many samples, which costs more than it saves here; a task
knows the difficulty of its problems.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from mull.inference.strategies.contract import Event, Found, Strategy, choose_strategy, strategy
from mull.inference.strategies.solver import Key, Manner, Problem, Solver

BINS = {"easy": 0.5, "medium": 0.1, "hard": 0.0}  # -> the least Pass@1 of it
NEEDED: dict[str, tuple[type, ...]] = {"strategy": (str,), "accuracy": (int, float), "flops_per_problem": (int, float)}
COUNTS = ("iterations", "difficulty")  # whole numbers, or nothing where there is none


class Measured(NamedTuple):
    """A row of the table: what a strategy at an iteration count reached at a difficulty, and for how many FLOPs."""

    strategy: str
    iterations: int | None
    difficulty: int | None
    accuracy: float
    flops: float


@strategy
@dataclass(frozen=True)
class ComputeOptimal(Strategy):
    """See the head of this file.

    Args:
        table: compare.json of `mull compare`; empty where `rows` are given.
        budget: most FLOPs a problem; 0 for any number.
        reference: the strategy whose accuracy says how hard a difficulty is; empty for the first of the table.
        folder: of the table, whose rows count; empty where it has one.
        rows: the rows themselves, as in the table.
    """

    table: str = ""
    budget: float = 0.0
    reference: str = ""
    folder: str = ""
    rows: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)

    name, example = "compute_optimal", "compute_optimal,table=compare.json"
    temperature = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.table and not self.rows:
            raise ValueError(f"strategy {self.name} lacks its table, which mull compare writes; write {self.example}")
        if not self.budget >= 0:
            raise ValueError(f"strategy {self.name}: budget must be at least 0, not {self.budget}")
        cheapest = min(self.measured, key=lambda row: row.flops)  # says now what is wrong with the table
        _ = self.bins
        if 0 < self.budget < cheapest.flops:
            raise self.too_small(cheapest)

    def chosen(self, problem: Problem, manner: Manner) -> tuple[str, Manner]:
        """The strategy for a problem, and the manner with its iterations."""
        best = self.best(self.bin_of(problem.difficulty))
        depth = manner.iterations if best.iterations is None else best.iterations
        return best.strategy, replace(manner, iterations=depth)

    def check(self, problem: Problem, solver: Solver, manner: Manner) -> None:
        name, deep = self.chosen(problem, manner)
        choose_strategy(name).ready(problem, solver, deep)

    def solve(self, problem: Problem, solver: Solver, manner: Manner, key: Key) -> Found:
        name, deep = self.chosen(problem, manner)
        found, depth = choose_strategy(name).follow(problem, solver, deep, key), deep.iterations
        by = name + ("" if depth is None else f" at {depth} iteration{'' if depth == 1 else 's'}")
        return replace(found, trace=[Event("strategy", by), *found.trace], by=by)

    # The table ----------------------------------------------------------------------------------------------------

    @cached_property
    def measured(self) -> list[Measured]:
        """The rows of the table. Raises ValueError for what is no such table."""
        rows: Sequence[Any] = self.rows or read_rows(self.table)
        where = f"strategy {self.name}: {self.table or 'rows'}"
        folders = sorted({str(row.get("folder", "")) for row in rows if isinstance(row, Mapping)})
        if self.folder not in folders and (self.folder or len(folders) > 1):
            known = ", ".join(name or "no folder" for name in folders)
            raise ValueError(f"{where} has rows of {known}; name one with folder=")
        found = []
        for row in rows:
            if not isinstance(row, Mapping) or not all(isinstance(row.get(name), t) for name, t in NEEDED.items()):
                raise ValueError(f"{where} has a row without {', '.join(NEEDED)}; give what mull compare wrote")
            wrong = [name for name in COUNTS if type(row.get(name)) not in (int, type(None))]
            if wrong:
                raise ValueError(f"{where} has a row whose {wrong[0]} is {row[wrong[0]]!r}, no whole number")
            if not (0 <= row["accuracy"] <= 1 and 0 <= row["flops_per_problem"] <= sys.float_info.max):
                raise ValueError(
                    f"{where} has a row of {row['strategy']} whose accuracy is no share from 0 to 1, or whose FLOPs "
                    "are no number from 0 on"
                )
            if len(folders) > 1 and row.get("folder") != self.folder:
                continue
            own = re.split("[:,]", row["strategy"])[0].strip() == self.name
            if own or row.get("ceiling") or self.known(row["strategy"], where) == "oracle":
                continue  # a choice among these, or a ceiling, which nobody can follow who does not know the answer
            depth, hard = row.get("iterations"), row.get("difficulty")
            found.append(Measured(row["strategy"], depth, hard, row["accuracy"], row["flops_per_problem"]))
        if not found:
            raise ValueError(f"{where} has only rows of the oracle or of {self.name}; measure other strategies, too")
        return found

    def known(self, given: str, where: str) -> str | None:
        """The scorer of a strategy, if it has one. Raises ValueError for a strategy that is not known: without its rows
        the choice might be a worse one, and nobody would notice."""
        try:
            return getattr(choose_strategy(given), "scorer", None)
        except ValueError as error:
            raise ValueError(f"{where} has a row of {given}, which cannot be followed: {error}") from None

    @property
    def goes_by(self) -> str:
        return hashlib.sha256(repr(self.measured).encode()).hexdigest()[:16]

    @property
    def own_depth(self) -> bool:
        return any(row.iterations is not None for row in self.measured)

    @cached_property
    def bins(self) -> dict[int | None, str]:
        """The bin of each difficulty that was measured."""
        reference = self.reference or self.measured[0].strategy
        passed: dict[int | None, list[float]] = defaultdict(list)
        for row in self.measured:
            if row.strategy == reference:
                passed[row.difficulty].append(row.accuracy)
        missing = {row.difficulty for row in self.measured} - passed.keys()
        if missing:
            known = sorted({row.strategy for row in self.measured})
            raise ValueError(
                f"strategy {self.name}: the table has no rows of reference={reference} at difficulty "
                f"{', '.join(map(str, missing))}; it has {'; '.join(known)}"
            )
        best = {difficulty: max(each) for difficulty, each in passed.items()}
        return {difficulty: bin_at(share) for difficulty, share in best.items()}

    def bin_of(self, difficulty: int | None) -> str | None:
        """The bin of a problem; None where its difficulty is not known."""
        known = [each for each in self.bins if each is not None]
        if difficulty is None or not known:
            return None
        return self.bins[min(known, key=lambda each: (abs(each - difficulty), each))]

    def best(self, name: str | None) -> Measured:
        """The choice for a bin, or over all of them for None, as a row of means over its difficulties. Raises
        ValueError where none is cheap enough."""
        cells: dict[tuple[str, int | None], list[Measured]] = defaultdict(list)
        for row in self.measured:
            if name is None or self.bins[row.difficulty] == name:
                cells[row.strategy, row.iterations].append(row)
        whole = max(len(rows) for rows in cells.values())  # what was not measured at all difficulties is not compared
        means = [
            Measured(*cell, None, mean([row.accuracy for row in rows]), mean([row.flops for row in rows]))
            for cell, rows in cells.items()
            if len(rows) == whole
        ]
        within = [row for row in means if not self.budget or row.flops <= self.budget]
        if not within:
            raise self.too_small(min(means, key=lambda row: row.flops), f" to {name} problems" if name else "")
        return max(within, key=lambda row: (row.accuracy, -row.flops))

    def too_small(self, cheapest: Measured, what: str = "") -> ValueError:
        """The error for a budget below the cheapest answer."""
        return ValueError(
            f"strategy {self.name}: a budget of {self.budget:.3g} FLOPs is too small for one answer{what}: the "
            f"cheapest of the table, {cheapest.strategy}, takes {cheapest.flops:.3g}"
        )


def bin_at(pass_at_1: float) -> str:
    """The bin of a Pass@1: absolute, whatever the others are."""
    return next(name for name, least in BINS.items() if pass_at_1 >= least)


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean of at least one value."""
    return sum(values) / len(values)


def read_rows(path: str) -> Sequence[Any]:
    """The rows of a compare.json. Raises ValueError for a file that is none."""
    try:
        content = json.loads(Path(path).expanduser().read_text())
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}); give the compare.json of mull compare") from None
    rows = content.get("rows") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path} has no rows; give the compare.json of mull compare")
    return rows
