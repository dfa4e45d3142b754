"""Several problems at once: the answers and the costs that each has alone, and an end in order where one fails."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest

from mull.inference.strategies import Solution, Solver
from mull.inference.strategies.folder import FolderSolver
from mull.inference.strategies.solving import solve
from mull.inference.strategies.thought_switching import ThoughtSwitching
from mull.inference.strategies.together import solve_together
from mull.models import LanguageModel

Make = Callable[..., LanguageModel]
PROBLEMS = ("1 + 2", "3", "4 4 + 5 =", "0 + 0", "7 + 1 + 2 + 3")


def jobs(strategy: str, **how: Any) -> list[Callable[[Solver], Solution]]:
    return [
        partial(lambda solver, text, seed: solve(solver, text, strategy, generator=seed, **how), text=text, seed=seed)
        for seed, text in enumerate(PROBLEMS)
    ]


@dataclass
class Unhashable:
    """A hook that may change, so that it equals none but itself."""

    def __call__(self, *asked: Any) -> Any:
        return asked[1]


def timeless(solution: Solution) -> Any:
    """A solution without its seconds, and without the last digits of sums."""
    cost = replace(solution.cost, seconds=0.0, flops=round(solution.cost.flops), scorer_flops=0.0)
    trace = [event._replace(score=None if event.score is None else round(event.score, 9)) for event in solution.trace]
    return replace(solution, cost=cost, trace=trace), round(solution.cost.scorer_flops)


@pytest.mark.parametrize(
    ("strategy", "how"),
    [
        ("direct", {"iterations": 3}),
        ("chain", {"exit": "latent:0.5", "iterations": 4}),
        ("majority:3", {"iterations": 2}),
        ("best_of_n:3,scorer=process", {"iterations": 2}),
        ("best_of_n:3,scorer=settled", {"iterations": 2}),
        ("beam:4,width=2,scorer=process:1", {"iterations": 2}),
        ("budget_forcing:2,cap=9", {"iterations": 2, "temperature": 0.8}),
        ("budget_forcing:1,put=empty", {"iterations": 2, "temperature": 0.8}),
        ("thought_switching:3:4", {"iterations": 2}),
        ("self_backtracking:3,rounds=2", {"iterations": 2}),
    ],
)
def test_each_is_what_it_is_alone(make_writer: Make, strategy: str, how: dict[str, Any]) -> None:
    """Text, answer, what happened, and every number of the cost, scorers' share too, of problems of all lengths that
    end at different times; in fp64, where sums of other rows change nothing that shows."""
    model = make_writer(value_head=True)
    alone = [job(FolderSolver(model)) for job in jobs(strategy, max_new_tokens=14, **how)]
    shared = FolderSolver(model)
    together = list(solve_together(shared, jobs(strategy, max_new_tokens=14, **how), at_once=4))
    assert list(map(timeless, together)) == list(map(timeless, alone))
    assert all(solution.cost.flops > 0 and solution.cost.tokens > 0 for solution in together)
    assert shared.meter.spent.flops == 0  # each problem has paid for itself
    assert len({solution.text for solution in together}) > 1


def test_what_is_wanted_at_once_is_written_at_once(make_writer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards that it saves anything: one call for all problems that ask the same, hooks that are equal included; a hook
    that is a function, of which nobody knows what it keeps, sees the lines of its own problem only."""
    calls: list[int] = []
    plain = FolderSolver.write
    monkeypatch.setattr(
        FolderSolver,
        "write",
        lambda self, branches, *how: (calls.append(len(branches)), plain(self, branches, *how))[1],
    )
    solver = FolderSolver(make_writer())
    list(solve_together(solver, jobs("majority:3", max_new_tokens=6)))
    assert calls == [15]
    calls.clear()
    list(solve_together(solver, jobs("thought_switching:3:4", max_new_tokens=6)))
    assert calls == [5]
    calls.clear()
    mixed = [*jobs("thought_switching:3:4", max_new_tokens=6)[:2], *jobs("thought_switching:4:4", max_new_tokens=6)]
    list(solve_together(solver, mixed))
    assert sorted(calls) == [2, 5]
    for made in (Unhashable, lambda: lambda *asked: asked[1]):
        calls.clear()
        monkeypatch.setattr(ThoughtSwitching, "penalty", lambda *_, made=made: made())
        list(solve_together(solver, jobs("thought_switching:3:4", max_new_tokens=6)))
        assert calls == [1] * 5
    calls.clear()
    list(solve_together(solver, jobs("chain", max_new_tokens=6), at_once=1))
    assert calls == [1] * 5


@pytest.mark.parametrize("error", [ValueError("no way"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["strategy", "solver"])
def test_an_error_ends_all_in_order(
    make_writer: Make, error: BaseException, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is raised to whoever asked, as it is, and no thread is left waiting."""
    solver, before = FolderSolver(make_writer()), threading.active_count()
    wanted = jobs("majority:2", max_new_tokens=6)

    def fails(*_: Any) -> Any:
        raise error

    if where == "strategy":
        wanted[2] = fails
    else:
        monkeypatch.setattr(FolderSolver, "write", fails)
    with pytest.raises(type(error)) as caught:
        list(solve_together(solver, wanted))
    assert caught.value is error and threading.active_count() == before


def test_others_are_asked_one_after_another(scripted: Any) -> None:
    """A solver that does not know whom to bill is not shared."""
    solver = scripted({"": [("1 <step>", -1.0)], "1 <step>": [("</think> 3", -1.0)]})
    found = list(solve_together(solver, jobs("chain")))
    assert [solution.answer for solution in found] == ["3"] * 5 and solver.meter.spent.calls > 0
