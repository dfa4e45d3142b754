"""mull.solve: one answer by a strategy, and what it cost."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from numbers import Integral
from typing import get_args

import torch

from mull.inference.exits import Exit
from mull.inference.strategies.contract import Solution, Strategy, answer_of, choose_strategy
from mull.inference.strategies.folder import FolderSolver
from mull.inference.strategies.solver import Manner, Marks, Problem, Solver, Style
from mull.inference.written import written_out
from mull.models import LanguageModel


def solver_of(writer: Solver | LanguageModel, marks: Marks | None = None, batch_size: int = 64) -> Solver:
    """A solver as it is, or one of a model.

    Args:
        writer: a model with a tokenizer, as `mull.load` gives it, or a solver.
        marks: of a model: the texts that structure its answers; the control words of mull's tasks by default.
        batch_size: of a model: rows that are written at once.

    Raises:
        ValueError: neither, or a model that was trained without traces.
    """
    if isinstance(writer, LanguageModel):
        return FolderSolver(writer, marks, batch_size)
    if not isinstance(writer, Solver):
        raise ValueError(f"solve takes a model, as mull.load gives it, or a Solver, not {type(writer).__name__}")
    return writer


def solve(
    writer: Solver | LanguageModel,
    text: str | Problem,
    strategy: str | Strategy = "chain",
    *,
    generator: int | torch.Generator = 0,
    iterations: int | None = None,
    exit: str | Exit | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    max_new_tokens: int = 256,
    check: Callable[[str], bool] | None = None,
    steps: Callable[[str], list[bool]] | None = None,
) -> Solution:
    """One answer by a strategy, and what it cost.

    Args:
        writer: a model with a tokenizer, as `mull.load` gives it, or a `Solver`.
        text: the problem without a style, which the strategy puts behind it; or a `Problem`.
        strategy: `majority:16`, or a `Strategy`.
        generator: a seed, or a generator, of which one number is taken. The answer depends on it and on nothing that
            is solved beside it.
        iterations: how long to think about every token; None is the model's own count.
        exit: a rule that ends thinking early, `latent:0.03`; `iterations` is then the most.
        temperature: 0 takes the likeliest token; None is what the strategy draws at.
        top_k: draw among so many of the likeliest tokens; see `mull.inference.Draw` for this and the next two.
        top_p: draw among the likeliest tokens that make up this mass.
        min_p: draw among tokens at least so many times as likely as the likeliest.
        max_new_tokens: most tokens of one branch, its thinking included.
        check: the exact checker of answers; nobody but the scorer `oracle` asks it.
        steps: of a written text, whether the answer can still be reached after each of its steps; likewise.

    Raises:
        ValueError: an unknown strategy, option or scorer, a model that lacks what the strategy needs, or a problem that
            is empty or has a style.
    """
    chosen, solver = choose_strategy(strategy), solver_of(writer)
    problem = text if isinstance(text, Problem) else Problem(text, check, steps)
    check_text(problem.text, solver.marks)
    if isinstance(generator, torch.Generator):
        generator = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
    if not isinstance(generator, Integral) or isinstance(generator, bool):
        raise ValueError(f"generator must be a seed, an integer, or a torch.Generator, not {generator!r}")
    manner = manner_of(iterations, exit, temperature, top_k, top_p, min_p, max_new_tokens)
    before, start = solver.meter.spent, time.perf_counter()
    found = chosen.follow(problem, solver, manner, (int(generator),))
    cost = replace(solver.meter.spent - before, seconds=time.perf_counter() - start)
    by = written_out(chosen) + (f" -> {found.by}" if found.by else "")
    answer = answer_of(solver.marks, found.branch, found.style)
    thinking = found.branch.thinking(solver.marks.end_of_thinking)
    return Solution(answer, found.branch.text, cost, found.trace, by, found.scorer, thinking)


def manner_of(
    iterations: int | None = None,
    exit: str | Exit | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    max_new_tokens: int = 256,
) -> Manner:
    """How is written, as `solve` is told it."""
    drawn = 0.0 if temperature is None else temperature
    return Manner(iterations, exit, drawn, top_k, top_p, min_p, max_new_tokens, usual=temperature is None)


def check_solvable(solver: Solver, problem: Problem, strategy: Strategy, manner: Manner) -> None:
    """Raise the ValueError of `solve` that is certain before anything is written."""
    check_text(problem.text, solver.marks)
    strategy.ready(problem, solver, manner)


def check_text(text: str, marks: Marks) -> None:
    """Raise a ValueError for a problem that is empty, or that has one of mull's styles behind it already."""
    if not isinstance(text, str):
        raise ValueError(f"the problem must be a text, or a Problem, not {text!r}")
    words = text.split()
    if not words:
        raise ValueError("the problem is empty; give at least one symbol")
    styles = {getattr(marks, name) for name in get_args(Style)} & set(vars(Marks()).values())
    if words[-1] in styles:
        raise ValueError(f"the problem ends with the style {words[-1]}: leave it out, the strategy puts its own there")
