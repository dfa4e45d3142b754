"""Several problems at once: their strategies take turns, and what they want written is written together.

    every strategy runs until it asks for something;  all that was asked for is written in one call;  and so on

A strategy is written for one problem, and one row at a time leaves a processor idle. Here each runs in a thread of its
own, of which only one is ever at work: it stops where it asks its solver to write or to score, and goes on when the
others have come to where they ask. Draws depend on the branch alone, so that answers are those that each problem would
get by itself; and what is read and written for a problem is billed to its own meter, so that costs are too (but for
the clock, of which each has an equal share).

A solver that can be shared says so: `billed(meter)` gives the same solver, whose branches bill that meter wherever they
are written. With other solvers problems are solved one after another.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from threading import Semaphore
from typing import Any

from mull.inference.strategies.contract import Solution
from mull.inference.strategies.meter import Meter, Shared
from mull.inference.strategies.solver import After, Before, Branch, Key, Manner, Solver

Job = Callable[[Solver], Solution]
HOOKS = 3  # the place of the hooks among what `write` is asked beside the branches


class Dropped(BaseException):
    """Raised in a strategy that is not to go on, since another one has failed."""


def solve_together(solver: Solver, jobs: Sequence[Job], at_once: int = 32) -> Iterator[Solution]:
    """The solutions, in the order of the jobs.

    Args:
        solver: who writes.
        jobs: each solves a problem with the solver that it is given.
        at_once: problems that take turns.
    """
    if not isinstance(solver, Shared) or at_once < 2:
        for job in jobs:
            yield job(solver)
        return
    for first in range(0, len(jobs), at_once):
        start = time.perf_counter()
        found = Table(solver).run(jobs[first : first + at_once])
        share = (time.perf_counter() - start) / len(found)
        for solution in found:
            yield replace(solution, cost=replace(solution.cost, seconds=share))


class Turn(Solver):
    """The solver that one strategy sees."""

    def __init__(self, solver: Any) -> None:
        self.meter = Meter()
        self.inner: Solver = solver.billed(self.meter)
        self.marks, self.gives_logits = solver.marks, solver.gives_logits  # type: ignore[misc]
        self.go, self.back = Semaphore(0), Semaphore(0)
        self.asked: tuple[str, Sequence[Branch], tuple[Any, ...]] | None = None
        self.answer: Any = None
        self.solution: Solution | None = None
        self.dropped = self.finished = False
        self.future: Future[Solution | None]

    # What is asked of others ----------------------------------------------------------------------------------------

    def ask(self, what: str, branches: Sequence[Branch], how: tuple[Any, ...]) -> Any:
        """Wait for the others, and give what the call that serves them all has for these branches."""
        self.asked = (what, branches, how)
        self.back.release()
        self.go.acquire()
        if self.dropped:
            raise Dropped
        self.asked = None
        return self.answer

    def write(
        self,
        branches: Sequence[Branch],
        manner: Manner,
        until: Sequence[str] = (),
        limit: int | None = None,
        before: Before | None = None,
        after: After | None = None,
    ) -> list[Branch]:
        found: list[Branch] = self.ask("write", branches, (manner, tuple(until), limit, before, after))
        return found

    def score(self, branches: Sequence[Branch], manner: Manner) -> list[float]:
        found: list[float] = self.ask("score", branches, (manner,))
        return found

    # What is its own ------------------------------------------------------------------------------------------------

    def begin(self, prompt: str, key: Key = ()) -> Branch:
        return self.inner.begin(prompt, key)

    def append(self, branches: Sequence[Branch], text: str) -> list[Branch]:
        return self.inner.append(branches, text)

    def cut(self, branch: Branch, tokens: int) -> Branch:
        return self.inner.cut(branch, tokens)

    def cut_text(self, branch: Branch, length: int) -> Branch:
        return self.inner.cut_text(branch, length)

    def room(self, branch: Branch) -> int:
        return self.inner.room(branch)

    def check(self, manner: Manner, marks: Sequence[str] = ()) -> None:
        self.inner.check(manner, marks)

    def most_iterations(self, manner: Manner) -> int | None:
        return self.inner.most_iterations(manner)

    @property
    def refuses_score(self) -> str | None:
        return self.inner.refuses_score

    def first_tokens(self, text: str) -> list[int]:
        return self.inner.first_tokens(text)

    def random_text(self, key: Key) -> str:
        return self.inner.random_text(key)

    # Taking turns ---------------------------------------------------------------------------------------------------

    def body(self, job: Job) -> Solution | None:
        """What its thread does; nothing is done but in its turn."""
        self.go.acquire()
        try:
            return None if self.dropped else job(self)
        finally:
            self.finished = True
            self.back.release()

    def run(self) -> None:
        """Let it run until it asks for something, or is done. Raises the error of its strategy."""
        self.go.release()
        self.back.acquire()
        if self.finished:
            self.solution = self.future.result()

    def drop(self) -> None:
        """Let its thread end."""
        if not self.finished:
            self.dropped = True
            self.go.release()


class Table:
    """Whose turns they are."""

    def __init__(self, solver: Solver) -> None:
        self.solver = solver

    def run(self, jobs: Sequence[Job]) -> list[Solution]:
        """The solutions of jobs that take turns."""
        turns = [Turn(self.solver) for _ in jobs]
        with ThreadPoolExecutor(len(jobs)) as pool:
            for turn, job in zip(turns, jobs, strict=True):
                turn.future = pool.submit(turn.body, job)
            running = list(turns)
            try:
                while running:
                    for turn in running:
                        turn.run()
                    running = [turn for turn in running if not turn.finished]
                    self.serve(running)
            finally:
                for turn in running:
                    turn.drop()
        return [turn.solution for turn in turns if turn.solution is not None]

    def serve(self, turns: Sequence[Turn]) -> None:
        """Answer what was asked: those who want the same are served in one call. Hooks are the same where they are
        equal, as values are (a penalty of the same size); a function is for its own lines only."""
        groups: dict[Hashable, list[Turn]] = {}
        for turn in turns:
            assert turn.asked is not None
            what, _, how = turn.asked
            groups.setdefault((what, *map(repr, how[:HOOKS]), *map(as_value, how[HOOKS:])), []).append(turn)
        for group in groups.values():
            what, _, how = group[0].asked or ("", (), ())
            given = [list(turn.asked[1]) if turn.asked else [] for turn in group]
            answers = list(getattr(self.solver, what)([branch for own in given for branch in own], *how))
            for turn, own in zip(group, given, strict=True):
                turn.answer, answers = answers[: len(own)], answers[len(own) :]


def as_value(hook: Before | After | None) -> Hashable:
    """What is equal for hooks that are, and where nobody can say, for the same one only."""
    try:
        hash(hook)
    except TypeError:
        return id(hook)
    return hook
