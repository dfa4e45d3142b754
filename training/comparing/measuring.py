"""Cells are measured: every strategy at every count on every difficulty, problem by problem, and kept when finished.

Every problem has one seed, whatever the strategy, depth and folder: what is drawn for it is the same for all that draw
alike, which makes differences between them smaller than chance would.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mull.checkpoints.files import one_line
from mull.inference.strategies import Marks, Problem, Solution, Solver, Strategy, choose_strategy
from mull.inference.strategies.endpoint import EndpointSolver
from mull.inference.strategies.folder import FolderSolver
from mull.inference.strategies.loading import is_ours
from mull.inference.strategies.solver import seed_of
from mull.inference.strategies.solving import check_solvable, manner_of, solve
from mull.inference.strategies.together import Job, solve_together
from mull.training.comparing.cells import Answered, Cell, Cells, Place
from mull.training.comparing.problems import Asked
from mull.training.comparing.rows import row_of

SMALL = 64 << 20  # bytes of a file that is read to see whether it is another


@dataclass(frozen=True)
class Writer:
    """Who writes, and what is known of it before it is opened.

    Attributes:
        name: as it was named: the folder, or the model and its address.
        key: of what is there, so that a folder that was trained again is measured again.
        open: opens it.
    """

    name: str
    key: str
    open: Callable[[], Solver]

    @cached_property
    def solver(self) -> Solver:
        """The writer, opened when it is first asked for. Raises ValueError, which names it."""
        try:
            return self.open()
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error

    @cached_property
    def mean(self) -> int | None:
        """The count that it was trained at; None where it has no loop."""
        if isinstance(self.solver, FolderSolver):
            return self.solver.model.config.default_iterations
        return self.solver.mean_iterations() if isinstance(self.solver, EndpointSolver) else None


def key_of(folder: Path, marks: Mapping[str, str] | None = None) -> str:
    """A key of a folder's model, and of the marks that it is given in place of its own. A mull folder names the
    checksum of its weights in its config.json. Of others all files count, whatever weights, vocabularies and templates
    are kept in; of large ones sizes and times have to do."""
    named = (
        ("config.json", "tokenizer.json") if is_ours(folder) else tuple(sorted(each.name for each in folder.iterdir()))
    )
    digest = hashlib.sha256(b"" if marks is None else json.dumps(dict(marks), sort_keys=True).encode())
    for file in (folder / name for name in named):
        if file.is_file():
            about = file.stat()
            told = file.read_bytes() if about.st_size < SMALL else f"{about.st_size} {about.st_mtime_ns}".encode()
            digest.update(file.name.encode() + hashlib.sha256(told).digest())
    return digest.hexdigest()[:16]


def places(
    writers: Sequence[Writer], strategies: Sequence[str], counts: Sequence[int] | None, asked: Asked, cells: Cells
) -> list[tuple[Writer, Place]]:
    """All cells of a comparison, in the order in which they are measured. A writer without a loop has no counts. A
    server is asked whether it has one only where a cell is missing: it may be gone when all are finished."""
    goes_by = {strategy: choose_strategy(strategy).goes_by for strategy in strategies}

    def of(writer: Writer, mean: int | None) -> list[Place]:
        depths: Sequence[int | None] = [None] if mean is None else counts or [mean]
        return [
            Place(writer.name, writer.key + goes_by[strategy], strategy, count, difficulty)
            for difficulty in asked.problems
            for strategy in strategies
            for count in depths
        ]

    found: list[tuple[Writer, Place]] = []
    for writer in writers:
        own = [] if writer.key else of(writer, cells.count_of(writer.name))
        finished = bool(own) and all(cells.find(place, asked.key(place.difficulty)) for place in own)
        found += [(writer, place) for place in (own if finished else of(writer, writer.mean))]
    return found


def check(wanted: Sequence[tuple[Writer, Place]], asked: Asked, cells: Cells, manner: Mapping[str, Any]) -> None:
    """Look whether all cells that are not there yet can be measured, before anything is. Arguments as of `measure`.

    Raises:
        ValueError: it is certain that one cannot, such as a scorer without its reward head; it names the first.
    """
    seen = set()
    for writer, place in wanted:
        if cells.find(place, asked.key(place.difficulty)) is None:
            strategy, how = choose_strategy(place.strategy), manner_of(**at_place(place, manner))
            texts = (writer.name, place.strategy, place.difficulty)
            problems = asked.problems[place.difficulty]
            for problem in problems[:1] if texts in seen else problems:  # they are as long at any count
                seen.add(texts)
                try:
                    check_solvable(writer.solver, problem, strategy, how)
                except (ValueError, OSError) as error:
                    raise ValueError(f"{place}: {one_line(str(error))}; nothing was measured") from error


def measure(
    wanted: Sequence[tuple[Writer, Place]],
    asked: Asked,
    cells: Cells,
    seed: int,
    manner: Mapping[str, Any],
    at_once: int,
    show: Callable[[str], None],
) -> list[Cell]:
    """All cells, of which those that are not there yet are measured, and kept one by one.

    Args:
        wanted: which.
        asked: the problems.
        cells: where they are kept.
        seed: of the draws.
        manner: how is written, as arguments of `solve`.
        at_once: problems that are solved at once, where the writer can; the answers are the same.
        show: is told of every cell that was measured.

    Raises:
        ValueError: a strategy lacks what it needs, or a server fails; what was finished is kept, and the error says so.
    """
    found = {place: cells.find(place, asked.key(place.difficulty)) for _, place in wanted}
    missing = [(writer, place) for writer, place in wanted if found[place] is None]
    done = len(wanted) - len(missing)
    if done:
        show(f"{done} of {len(wanted)} cells are there already")
    with progress(sum(len(asked.problems[place.difficulty]) for _, place in missing)) as step:
        for writer, place in missing:
            try:
                cell = measured(writer, place, asked, seed, manner, at_once, step)
            except (ValueError, OSError) as error:
                kept = f"{done} of {len(wanted)} cells are finished and kept in {cells.folder.parent}"
                raise ValueError(f"{place}: {one_line(str(error))}; {kept}: the same command goes on") from error
            cells.keep(cell)
            if not writer.key:
                cells.keep_count(writer.name, writer.mean)
            found[place], done = cell, done + 1
            row = row_of(cell)
            show(f"cell {done} of {len(wanted)}: {place}: {100 * row.accuracy:.1f} % in {row.seconds:.1f} s")
    return [cell for cell in found.values() if cell is not None]


def measured(
    writer: Writer,
    place: Place,
    asked: Asked,
    seed: int,
    manner: Mapping[str, Any],
    at_once: int,
    step: Callable[[str], None],
) -> Cell:
    """A cell, measured."""
    strategy, answered, ceiling = choose_strategy(place.strategy), [], False
    problems = asked.problems[place.difficulty]

    def job(number: int) -> Job:
        how = {"generator": seed_of((seed,), number), **at_place(place, manner)}
        return lambda solver: solve(solver, problems[number], strategy, **how)

    jobs = [job(number) for number in range(len(problems))]
    for problem, solution in zip(problems, solve_together(writer.solver, jobs, at_once), strict=True):
        answered.append(answer_of(problem, solution))
        ceiling = ceiling or solution.ceiling
        step(str(place))
    return Cell(place, asked.key(place.difficulty), tuple(answered), ceiling, *about(strategy))


def at_place(place: Place, manner: Mapping[str, Any]) -> dict[str, Any]:
    """How is written at a place. Where there is no loop there are no counts, and nothing to leave early."""
    without = {"exit": None} if place.iterations is None else {}
    return {**manner, "iterations": place.iterations, **without}


def answer_of(problem: Problem, solution: Solution) -> Answered:
    """What became of a problem; the exact checker judges here, when all is written."""
    assert problem.check is not None
    drawn = [event.answer for event in solution.trace if event.what == "sample" and event.answer is not None]
    cost = solution.cost
    return Answered(
        right=problem.check(solution.answer),
        flops=cost.flops or None,  # nobody computes for nothing: it was not counted
        tokens=cost.tokens,
        calls=cost.calls,
        seconds=cost.seconds,
        answer=solution.answer,
        text=solution.text,
        labels=None if problem.steps is None else tuple(problem.steps(solution.text)),
        samples=tuple(problem.check(answer) for answer in drawn) if len(drawn) > 1 else None,
        thinking=solution.thinking,
    )


def about(strategy: Strategy) -> tuple[int | None, str | None, tuple[float | None, float | None]]:
    """How many answers a strategy draws, their style, and the least and the most tokens that it is told to think."""
    samples, style, cap = (getattr(strategy, name, None) for name in ("n", "style", "cap"))
    return samples, style, (None, float(cap) if cap else None)


def marks_of(writers: Sequence[Writer]) -> dict[str, Marks]:
    """By which texts each writer structures what it writes."""
    return {writer.name: writer.solver.marks for writer in writers}


@contextmanager
def progress(problems: int) -> Iterator[Callable[[str], None]]:
    """What is to be told of every problem that was solved: a bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty() or not problems:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=problems)
        yield lambda name: bar.update(task, advance=1, description=escape(name))
