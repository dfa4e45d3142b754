"""Cells that are kept: whole, found again, never believed when damaged, never mixed with others."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mull.inference.strategies import Solver
from mull.training.comparing.cells import Answered, Cell, Cells, read_cell, write_cell
from mull.training.comparing.measuring import Writer, places
from mull.training.comparing.problems import Asked
from mull.training.comparing.rows import row_of, to_csv

Make = Callable[..., Cell]


def kept(cells: Cells, cell: Cell) -> bool:
    return cells.find(cell.place, cell.problems) == cell


def test_cells_come_back_as_they_were(make: Make, tmp_path: Path) -> None:
    """Every field of every problem, by the place; another place, weight or problem finds nothing."""
    cells = Cells(tmp_path, {"seed": 0, "examples": 2})
    one = Answered(True, None, 3, 2, 0.25, "7", "a <step> 7", (True, False), (True, False, True), 2)
    cell = replace(
        make("majority:4,style=draft", 4, samples=4, difficulty=8), answered=(one, Answered(False, 2.5, 1, 1, 0))
    )
    cell = replace(cell, limits=(None, 32))
    assert cells.find(cell.place, cell.problems) is None
    cells.keep(cell)
    assert kept(Cells(tmp_path, {"examples": 2, "seed": 0}), cell)
    for other in ({"strategy": "majority:4"}, {"iterations": None}, {"difficulty": 4}, {"key": "x"}, {"folder": "b"}):
        assert cells.find(replace(cell.place, **other), cell.problems) is None  # type: ignore[arg-type]
    assert cells.find(cell.place, "others") is None


def test_cells_from_before_thinking_was_counted_are_cells(make: Make) -> None:
    """Guards comparisons that are gone on with: what an older cell does not tell is not known."""
    cell = make("chain", 1, problems=3)
    body = json.loads(json.loads(write_cell(cell))["cell"])
    for each in body["answered"]:
        del each["thinking"]
    text = json.dumps(body)
    old = {"sha256": hashlib.sha256(text.encode()).hexdigest(), "cell": text}
    assert read_cell(json.dumps(old).encode()) == cell


def test_cells_hold_no_nan(make: Make) -> None:
    """Guards tables that are made of cells: NaN is no JSON, and nothing that could be compared."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_cell(replace(make("chain", 1, problems=3), limits=(float("nan"), None)))


def test_damaged_cells_are_measured_anew(make: Make, tmp_path: Path) -> None:
    """A bit, a cut or an empty file anywhere: no cell, and no error; the others stay."""
    cells = Cells(tmp_path, {"seed": 0})
    cell, other = make("chain", 1, problems=3), make("draft", 1, problems=3)
    cells.keep(other)
    data = write_cell(cell)
    for place in range(0, len(data), 7):
        damaged = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        (tmp_path / "cells" / cell.place.file).write_bytes(damaged)
        assert cells.find(cell.place, cell.problems) is None
    for short in (b"", data[:-9], b"null", b'{"cell": 3, "sha256": ""}', b"[" * 10000):
        (tmp_path / "cells" / cell.place.file).write_bytes(short)
        assert cells.find(cell.place, cell.problems) is None
        with pytest.raises(ValueError, match=r"."):
            read_cell(short)
    cells.keep(cell)
    assert kept(cells, cell) and kept(cells, other)


def test_other_settings_are_refused(make: Make, tmp_path: Path) -> None:
    """A folder never mixes cells of other seeds or problems; settings that are lost vouch for no cell."""
    cell = make("chain", 1, problems=3)
    Cells(tmp_path, {"seed": 0, "examples": 3}).keep(cell)
    with pytest.raises(ValueError, match=r"with examples 3, and 4 is asked for.*--output"):
        Cells(tmp_path, {"seed": 0, "examples": 4})
    with pytest.raises(ValueError, match=r"with temperature None, and 0.5"):
        Cells(tmp_path, {"seed": 0, "examples": 3, "temperature": 0.5})
    (tmp_path / "cells" / "settings.json").write_text("{")
    again = Cells(tmp_path, {"seed": 1, "examples": 3})
    again.keep(make("draft", 1, problems=3))
    assert not kept(again, cell)


def test_rows(make: Make) -> None:
    """The columns that were promised, from known answers."""
    row = row_of(make("majority:4", 4, 0.25, samples=4, tokens=12, difficulty=8, problems=40))
    assert (row.folder, row.strategy, row.iterations, row.difficulty) == ("model", "majority:4", 4, 8)
    assert (row.accuracy, row.flops_per_problem, row.tokens_per_problem, row.calls_per_problem) == (0.25, 100, 12, 4)
    assert row.accuracy_low == pytest.approx(0.142, abs=1e-3) and row.accuracy_high == pytest.approx(0.402, abs=1e-3)
    assert (row.seconds, row.examples, row.ceiling) == (20.0, 40, False)
    names, line = to_csv([row_of(make("chain", None, flops=None))]).splitlines()
    assert names.startswith(
        "folder,strategy,iterations,difficulty,accuracy,accuracy_low,accuracy_high,flops_per_problem,"
    )
    assert line.startswith("model,chain,,,0.5,") and ",,8.0,1.0,100.0,200,False" in line


def test_a_strategy_that_goes_by_a_file_is_measured_anew_with_another(tmp_path: Path) -> None:
    """Guards a comparison that is gone on with after the table of compute_optimal was written anew: its cell has
    another key, those of others the same."""
    writer = Writer("f", "weights", Solver)
    vars(writer)["mean"] = 2  # it need not be opened
    asked, table = Asked("some", "difficulty", {4: []}), tmp_path / "compare.json"

    def keys(accuracy: float) -> list[str]:
        row = {"strategy": "chain", "accuracy": accuracy, "flops_per_problem": 9.0}
        table.write_text(json.dumps({"rows": [row]}))
        strategies = ["chain", f"compute_optimal,table={table}"]
        return [place.key for _, place in places([writer], strategies, [1], asked, Cells(tmp_path, {}))]

    first, again, other = keys(0.25), keys(0.25), keys(0.5)
    assert first == again and first[0] == other[0] == "weights" and first[1] != other[1]


@pytest.mark.parametrize(("said", "counts", "depths"), [(2, None, [2]), (2, [1, 4], [1, 4]), (None, [1, 4], [None])])
def test_a_server_is_not_asked_for_what_is_finished(
    said: int | None, counts: list[int] | None, depths: list[int | None], make: Make, tmp_path: Path
) -> None:
    """Guards reports of finished comparisons behind an endpoint, whose server may be gone: what it said of its
    iterations is kept with the cells, and believed as long as none of them is missing."""

    def away() -> Solver:
        raise ValueError("cannot be reached")

    asked, cells = Asked("some", "difficulty", {4: [], 8: []}), Cells(tmp_path, {})
    there, gone = Writer("m at x", "", Solver), Writer("m at x", "", away)
    vars(there)["mean"] = said
    wanted = [place for _, place in places([there], ["chain"], counts, asked, cells)]
    assert [place.iterations for place in wanted] == 2 * depths
    for number, place in enumerate(wanted):
        with pytest.raises(ValueError, match="m at x: cannot be reached"):
            places([gone], ["chain"], counts, asked, cells)
        cells.keep(replace(make("chain", 1, problems=1), place=place, problems=asked.key(place.difficulty)))
        if not number:
            cells.keep_count("m at x", said)
    assert [place for _, place in places([gone], ["chain"], counts, asked, Cells(tmp_path, {}))] == wanted
    (tmp_path / "cells" / "servers.json").write_text("{")
    if said is not None:
        with pytest.raises(ValueError, match="cannot be reached"):
            places([gone], ["chain"], counts, asked, cells)


def test_settings_that_are_lost_vouch_for_no_cell(make: Make, tmp_path: Path) -> None:
    """Guards cells whose settings were deleted or damaged: they may be of others, and are measured anew."""
    cell = make("chain", 1, problems=3)
    Cells(tmp_path, {"max_new_tokens": 256}).keep(cell)
    assert kept(Cells(tmp_path, {"max_new_tokens": 256}), cell)
    settings = tmp_path / "cells" / "settings.json"
    for what in (settings.unlink, lambda: settings.write_text("{")):
        what()
        later = Cells(tmp_path, {"max_new_tokens": 3})
        assert not kept(later, cell)
        later.keep(cell)
        assert kept(later, cell) and kept(Cells(tmp_path, {"max_new_tokens": 3}), cell)
