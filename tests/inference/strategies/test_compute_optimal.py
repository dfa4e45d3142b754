"""The strategy that chooses among others: what it takes from a table of compare, by hand, and what it says of a table
that is none."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mull
from mull.inference.strategies import Problem
from mull.inference.strategies.compute_optimal import ComputeOptimal, Measured
from mull.inference.strategies.folder import FolderSolver
from mull.inference.strategies.solver import Manner
from mull.models import LanguageModel


def row(strategy: str, iterations: int, difficulty: int, accuracy: float, flops: float, **more: Any) -> dict[str, Any]:
    cell = {"strategy": strategy, "iterations": iterations, "difficulty": difficulty}
    return {"folder": "f", **cell, "accuracy": accuracy, "flops_per_problem": flops, **more}


MEASURED = {  # difficulty -> accuracy and FLOPs of: chain at 1, chain at 4, majority:4 at 1, majority:4 at 4 iterations
    2: ((0.5, 10), (0.9, 40), (0.7, 40), (0.9, 160)),
    4: ((0.4, 20), (0.6, 80), (0.9, 80), (0.9, 320)),
    8: ((0.1, 30), (0.3, 120), (0.5, 120), (0.4, 480)),
    16: ((0.0, 40), (0.05, 160), (0.0, 160), (0.2, 640)),
}
CELLS = (("chain", 1), ("chain", 4), ("majority:4", 1), ("majority:4", 4))
ROWS = tuple(
    row(*cell, difficulty, *reached)
    for difficulty, each in MEASURED.items()
    for cell, reached in zip(CELLS, each, strict=True)
)


def chosen(budget: float, difficulty: int | None) -> tuple[str, int | None]:
    strategy = ComputeOptimal(rows=ROWS, budget=budget)
    best = strategy.best(strategy.bin_of(difficulty))
    return best.strategy, best.iterations


def choices(strategy: ComputeOptimal) -> dict[str | None, Measured]:
    return {name: strategy.best(name) for name in (None, "easy", "medium", "hard")}


def test_the_choice_is_the_best_of_its_bin_within_the_budget() -> None:
    """Guards the argmax, worked out by hand. Pass@1, the chain's at its best depth, is 0.9, 0.6, 0.3 and 0.05, so that
    difficulties 2 and 4 share the bin `easy`: there the deep chain means 0.75 for 60 FLOPs, the vote of shallow ones
    0.8 for 60, and of deep ones 0.9 for 240."""
    assert ComputeOptimal(rows=ROWS).own_depth
    assert ComputeOptimal(rows=ROWS).bins == {2: "easy", 4: "easy", 8: "medium", 16: "hard"}
    assert [chosen(budget, 2) for budget in (0, 240, 100, 60, 59)] == [
        ("majority:4", 4), ("majority:4", 4), ("majority:4", 1), ("majority:4", 1), ("chain", 1),
    ]  # fmt: skip
    assert chosen(0, 4) == ("majority:4", 4) and chosen(0, 8) == (
        "majority:4",
        1,
    )  # 0.5 beats 0.4 for four times as much
    assert chosen(0, 16) == ("majority:4", 4) and chosen(200, 16) == ("chain", 4)
    assert (
        chosen(0, 5) == ("majority:4", 4) and chosen(0, 7) == chosen(0, 8) and chosen(0, 99) == chosen(0, 16)
    )  # nearest
    assert chosen(200, None) == ("majority:4", 1)  # means over all: 0.525 for 100 FLOPs, the deep chain 0.4625 for 100


def test_a_budget_is_asked_of_the_bin_of_a_problem() -> None:
    """Guards problems that can be afforded: that those of another bin cannot is no reason to refuse them."""
    rows = (row("chain", 1, 2, 0.9, 100), row("chain", 1, 8, 0.05, 1000))
    assert ComputeOptimal(rows=rows, budget=500).best("easy").flops == 100
    with pytest.raises(ValueError, match=r"a budget of 500 FLOPs is too small for one answer to hard problems: .* 1e"):
        ComputeOptimal(rows=rows, budget=500).best("hard")
    with pytest.raises(ValueError, match=r"a budget of 99 FLOPs is too small for one answer: .*chain, takes 100"):
        ComputeOptimal(rows=rows, budget=99)


def test_a_ceiling_is_never_chosen() -> None:
    """Guards against following the oracle, whose rows stand in the same table."""
    rows = (*ROWS, *(row("best_of_n:4,scorer=oracle", 1, difficulty, 1.0, 1.0) for difficulty in MEASURED))
    assert choices(ComputeOptimal(rows=rows)) == choices(ComputeOptimal(rows=ROWS))


def test_what_is_never_chosen_need_not_be_known() -> None:
    """Guards tables with rows of a plugin that is not loaded: those of another folder, and ceilings, change nothing;
    one whose name begins like this strategy's is no row of this strategy."""
    rows = (*ROWS, row("mine", 1, 2, 1.0, 1, folder="g"), row("mine:3", 1, 2, 1.0, 1, ceiling=True))
    assert choices(ComputeOptimal(rows=rows, folder="f")) == choices(ComputeOptimal(rows=ROWS))
    with pytest.raises(ValueError, match="strategy 'compute_optimal_of_mine' is not known"):
        ComputeOptimal(rows=(*ROWS, row("compute_optimal_of_mine", 1, 2, 1.0, 1)))


def test_ties_go_to_the_cheaper_and_what_was_not_measured_everywhere_is_left_out() -> None:
    rows = (
        row("chain", 1, 2, 0.6, 10),
        row("chain", 4, 2, 0.6, 40),
        row("chain", 1, 3, 0.6, 10),
        row("draft", 1, 2, 1.0, 1),
    )
    strategy = ComputeOptimal(rows=rows, reference="chain")
    assert (strategy.best("easy").strategy, strategy.best("easy").iterations) == ("chain", 1)


def test_what_is_chosen_is_followed(make_writer: Callable[..., LanguageModel], tmp_path: Path) -> None:
    """Guards the whole way from the file: the answer, temperature and cost of the strategy that it chose, which is
    said; other folders' rows do not count."""
    others = [row("draft", 1, 8, 1.0, 1, folder="other")]
    table = tmp_path / "compare.json"
    table.write_text(json.dumps({"rows": [*ROWS, *others], "exchange": []}))
    model = make_writer()
    asked: dict[str, Any] = {"generator": 3, "max_new_tokens": 12}
    found = mull.solve(model, Problem("1 + 2", difficulty=8), f"compute_optimal,table={table},folder=f", **asked)
    expected = mull.solve(model, "1 + 2", "majority:4", iterations=1, **asked)
    assert found.text == expected.text and found.cost.flops == expected.cost.flops
    assert found.strategy.endswith("-> majority:4 at 1 iteration") and found.trace[0].what == "strategy"
    assert found.trace[1:] == expected.trace


def test_what_the_chosen_strategy_lacks_is_said_before(make_writer: Callable[..., LanguageModel]) -> None:
    """Guards a comparison's check beforehand, which asks the strategy that would be followed."""
    strategy, solver = ComputeOptimal(rows=(row("majority:4", 2, 4, 0.9, 1.0),)), FolderSolver(make_writer("recurrent"))
    with pytest.raises(ValueError, match="at temperature 0 all of its 4 texts would be the same"):
        strategy.check(Problem("1 + 2", difficulty=4), solver, Manner(temperature=0.0))


@pytest.mark.parametrize(
    ("content", "options", "says"),
    [
        (None, "", "No such file"),
        ("{", "", "is not JSON"),
        ("[]", "", "has no rows; give the compare.json of mull compare"),
        ('{"rows": [{"strategy": "chain"}]}', "", "a row without strategy, accuracy, flops_per_problem"),
        (json.dumps({"rows": [row("best_of_n:4,scorer=oracle", 1, 8, 1.0, 1)]}), "", "has only rows of the oracle"),
        (json.dumps({"rows": [row("best_of_n:4:chain:oracle", 1, 8, 1.0, 1)]}), "", "only rows of the oracle or of"),
        (json.dumps({"rows": [row("compute_optimal,table=x", 1, 8, 1.0, 1)]}), "", "or of compute_optimal; measure"),
        (json.dumps({"rows": [row("chain", 1, "8", 1.0, 1)]}), "", "a row whose difficulty is '8', no whole number"),
        (json.dumps({"rows": [row("chain", 1.5, 8, 1.0, 1)]}), "", "a row whose iterations is 1.5, no whole number"),
        (json.dumps({"rows": [*ROWS, row("mine:4", 1, 8, 1.0, 1)]}), "",
         r"compare.json has a row of mine:4, which cannot be followed: strategy 'mine' is not known; .*--plugin"),
        (json.dumps({"rows": [*ROWS, row("beam:4,scorer=mine", 1, 8, 1.0, 1)]}), "", "scorer .mine. is not known"),
        (json.dumps({"rows": [row("chain", 1, 8, float("nan"), 1)]}), "", "a row of chain whose accuracy is no share"),
        (json.dumps({"rows": [row("chain", 1, 8, -1.0, 1)]}), "", "a row of chain whose accuracy is no share"),
        (json.dumps({"rows": [row("chain", 1, 8, 1.0, 10**400)]}), "", "or whose FLOPs are no number from 0 on"),
        (json.dumps({"rows": ROWS}), ",folder=g", "has rows of f; name one with folder="),
        (json.dumps({"rows": ROWS}), ",budget=nan", "budget 'nan' is not a number"),
        (json.dumps({"rows": ROWS}), ",budget=5", "a budget of 5 FLOPs is too small for one answer: the cheapest"),
        (json.dumps({"rows": ROWS}), ",budget=-1", "budget must be at least 0, not -1"),
        (json.dumps({"rows": ROWS}), ",reference=draft", "no rows of reference=draft"),
        (json.dumps({"rows": [ROWS[0], row("draft", 1, 8, 1.0, 1, folder="g")]}), "", "of f, g; name one with folder="),
        (json.dumps({"rows": ROWS}), ",budget=lots", "budget 'lots' is not a number"),
    ],
)  # fmt: skip
def test_a_wrong_table_is_told_in_one_line(content: str | None, options: str, says: str, tmp_path: Path) -> None:
    """Guards before anything is written: an error names the file or the option."""
    table = tmp_path / "compare.json"
    if content is not None:
        table.write_text(content)
    with pytest.raises((ValueError, OSError), match=says) as error:
        mull.inference.strategies.choose_strategy(f"compute_optimal,table={table}{options}")
    assert "\n" not in str(error.value)
