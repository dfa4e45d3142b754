"""An evaluation as tables for people: iterations down, difficulties across. Rich is imported when one is made."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mull.checkpoints.quantities import (
    ABOUT_SETTLING,
    BITS,
    MEAN,
    cells,
    difference,
    examples_of,
    interval_of,
    is_text,
    number,
    reference_of,
    settling_cells,
    si,
    written_headline,
)
from mull.inference.measure.results import Result, rows_of

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

ByCount = Mapping[int | None, Mapping[int | None, Result]]  # by count and difficulty


def print_table(
    results: Sequence[Result], *, title: str | None = None, console: Console | None = None, settling: bool = False
) -> None:
    """Print `tables(results)` to the console, by default on standard output; with `settling` also `settling_table`, and
    where results have an alignment `alignment_table`."""
    also = [settling_table(results) if settling else None, alignment_table(results)]
    for made in [*tables(results, title=title), *(table for table in also if table is not None)]:
        (console or standard_output()).print(made)


def standard_output() -> Console:
    """A console on standard output, for which a reader who has gone is what it is for `print`: a BrokenPipeError."""
    from rich.console import Console

    class Plain(Console):
        def on_broken_pipe(self) -> None:  # rich would end the process with status 1
            raise BrokenPipeError

    return Plain()


def settling_table(results: Sequence[Result]) -> Table | None:
    """Whether the model had finished thinking, a row for each difficulty and count, and whether that tells right from
    wrong; None where nothing says so. Numbers are written as quantities.py says."""
    rows: dict[tuple[int | None, int | None], dict[str, str]] = {}
    text = is_text(rows_of(results))
    for result in results:
        row, at = asdict(result), result.difficulty
        first = all(difficulty != at for difficulty, _ in rows)  # of its difficulty
        told = settling_cells(row, first)
        if told:
            place = {"difficulty": str(at) if first and at is not None else ""}
            rows[at, result.iterations] = {**place, "iterations": cells(row, text, None)["iterations"], **told}
    return filled(rows, "had it finished thinking?", ABOUT_SETTLING) if rows else None


def alignment_table(results: Sequence[Result]) -> Table | None:
    """Whether two starts come to one state, a row for each count and a column for each difficulty; None where nothing
    says so."""
    rows: dict[int | None, dict[str, str]] = {}
    for result in results:
        if result.alignment is not None:
            name = "cosine" if result.difficulty is None else f"at {result.difficulty}"
            row = rows.setdefault(result.iterations, {"iterations": str(result.iterations)})
            row[name] = interval_of(asdict(result), "alignment", BITS)
    return filled(rows, "do two starts come to one state?", "cosine of the states; 95 % intervals") if rows else None


def tables(results: Sequence[Result], *, title: str | None = None) -> list[Table]:
    """One table for one difficulty. For several ones a table of the headline by difficulty, one of its differences, and
    for a model with routed passes one of who took them.

    Seconds are of the sweep, of all difficulties together; numbers are written as quantities.py says.
    """
    difficulties = list(dict.fromkeys(result.difficulty for result in results))
    at: dict[int | None, dict[int | None, Result]] = defaultdict(dict)
    for result in results:
        at[result.iterations][result.difficulty] = result
    text, reference = is_text(rows_of(results)), reference_of(rows_of(results))
    shown = "bits per byte" if text else "accuracy in %"
    if len(difficulties) == 1:
        (difficulty,) = difficulties
        about = shown if difficulty is None else f"{shown} at {difficulty}"
        about += f"; {examples_of(rows_of(results))}"
        rows = {count: single(found[difficulty], text, reference) for count, found in at.items()}
        return [filled(rows, title, caption(about, reference, text))]
    rows = {count: several(found, difficulties, text) for count, found in at.items()}
    read = examples_of(rows_of(results))
    made = [filled(rows, title, f"{shown} by difficulty; {read}; 95 % intervals; sec: the sweep so far")]
    if reference is not None:
        compared = {count: differences(found, difficulties, text) for count, found in at.items() if count != reference}
        about = f"{'bits per byte' if text else 'points'} by difficulty, on the same examples; 95 % intervals"
        made.append(filled(compared, f"difference to {reference} iterations", about))
    if any(result.verified is not None for result in results):
        judged = {count: verdicts(found, difficulties, text) for count, found in at.items()}
        made.append(filled(judged, "written answers that are right", "% by difficulty, of a verifier; 95 % intervals"))
    if any(result.capacity_met for result in results):
        met = {count: capacities(found, difficulties, text) for count, found in at.items()}
        made.append(filled(met, "who took each routed pass", "% of the tokens, by pass; met by difficulty"))
    return made


def caption(about: str, reference: int | None, text: bool) -> str:
    """What stands under a table."""
    parts = [about, "95 % intervals", "loss in nats", "sec: the sweep so far"]
    if reference is not None:
        parts.insert(2, f"vs {reference}: {'bits' if text else 'points'} on the same examples")
    return "; ".join(part for part in parts if part)


def single(result: Result, text: bool, reference: int | None) -> dict[str, str]:
    """The cells of a count where there is one difficulty."""
    return {**cells(asdict(result), text, reference), "sec": f"{result.seconds:.2f}"}


def several(found: Mapping[int | None, Result], difficulties: Sequence[int | None], text: bool) -> dict[str, str]:
    """The cells of a count by difficulty; blank where nothing was measured. FLOPs are those of the last difficulty."""
    measured = [found[difficulty] for difficulty in difficulties if difficulty in found]
    shown = {
        f"at {each}": written_headline(asdict(found[each]), text) if each in found else "" for each in difficulties
    }
    used = [result.mean_iterations for result in measured if result.mean_iterations is not None]
    last = cells(asdict(measured[-1]), text, None)
    return {
        "iterations": last["iterations"],
        **shown,
        "mean iterations": number(sum(used) / len(used), MEAN) if used else "",
        f"FLOPs/token ({difficulties[-1]})": si(measured[-1].flops_per_token),
        "sec": f"{sum(result.seconds for result in measured):.2f}",
    }


def differences(found: Mapping[int | None, Result], difficulties: Sequence[int | None], text: bool) -> dict[str, str]:
    """The cells of a count in the table of differences."""
    shown = {f"at {each}": difference(asdict(found[each]), text) if each in found else "" for each in difficulties}
    return {"iterations": cells(asdict(next(iter(found.values()))), text, None)["iterations"], **shown}


def verdicts(found: Mapping[int | None, Result], difficulties: Sequence[int | None], text: bool) -> dict[str, str]:
    """The cells of a count in the table of verified answers."""
    rows = {difficulty: cells(asdict(result), text, None) for difficulty, result in found.items()}
    shown = {f"at {each}": rows[each]["verified %"] if each in rows else "" for each in difficulties}
    return {"iterations": next(iter(rows.values()))["iterations"], **shown}


def capacities(found: Mapping[int | None, Result], difficulties: Sequence[int | None], text: bool) -> dict[str, str]:
    """The cells of a count in the table of routed passes: what was asked for, and what each difficulty met."""
    rows = {difficulty: cells(asdict(result), text, None) for difficulty, result in found.items()}
    first = next(iter(rows.values()))
    shown = {f"at {each}": rows[each]["met %"] if each in rows else "" for each in difficulties}
    return {"iterations": first["iterations"], "asked": first["asked %"], **shown}


def filled(rows: Mapping[Any, Mapping[str, str]], title: str | None, caption: str) -> Table:
    """A table of these cells, one row a count; columns that are blank throughout are left out."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    plain = None if title is None else Text(title)  # names of folders, also in cells, may look like markup
    made = Table(title=plain, caption=caption, box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    names = [name for name in next(iter(rows.values())) if any(row[name] for row in rows.values())]
    for name in names:
        made.add_column(name, justify="right", overflow="fold")  # a narrow terminal breaks cells, and loses nothing
    for row in rows.values():
        made.add_row(*(Text(row[name]) for name in names))
    return made
