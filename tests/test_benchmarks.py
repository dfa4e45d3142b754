"""Benchmarks are no part of the package, and go on running as it changes: all are imported, and one that chooses among
texts of a model is held to what the library chooses."""

import argparse
import runpy
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import mull
from mull.inference.strategies import Problem
from mull.inference.strategies.solver import seed_of
from mull.inference.strategies.solving import solve, solver_of
from mull.training.evaluation import data_of

PLACE = Path(__file__).parents[1] / "benchmarks"
FILES = sorted(PLACE.glob("*.py"))


@pytest.fixture(autouse=True)
def beside_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """They import each other, as scripts do."""
    monkeypatch.setattr(sys, "path", [str(PLACE), *sys.path])
    monkeypatch.delitem(sys.modules, "rewards", raising=False)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_benchmark_is_imported(file: Path) -> None:
    """Guards against names of the package that have gone; each says at its head what it measures."""
    found = runpy.run_path(str(file), run_name="imported")
    assert len(found["__doc__"]) > 60 and len(FILES) > 10


def test_rewards_choose_what_best_of_n_chooses(capsys: pytest.CaptureFixture[str]) -> None:
    """Guards the table of heads in docs/results.md: its choices are those of the library, from the same draws."""
    options = argparse.Namespace(
        folders=["reasoner"], difficulty=4, examples=4, samples=2, style="draft", iterations=1, judge_at=None, seed=0
    )
    import_module("rewards").main(options)
    told = {line.split()[0]: line for line in capsys.readouterr().out.replace("\n  last ", " last ").splitlines()}
    task: Any = data_of("reasoner").task  # type: ignore[attr-defined]
    problems, solver = [Problem(*each) for each in task.problems("test", 0, 4, 4)], solver_of(mull.load("reasoner"))
    for scorer in ("log_probability", "random", "oracle"):
        strategy, right = f"best_of_n:2,scorer={scorer},style=draft", 0
        for number, problem in enumerate(problems):
            found = solve(solver, problem, strategy, generator=seed_of((0,), number), iterations=1)
            assert problem.check is not None
            right += problem.check(found.answer)
        assert float(told[scorer].split()[-1]) == pytest.approx(100 * right / 4, abs=0.05)
