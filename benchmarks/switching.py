"""Is a thought given up too soon, or rightly? python benchmarks/switching.py [FOLDER] [--difficulty 4] [--problems 300]

A penalty on switching (inference/strategies/thought_switching.py) should help where a first idea was right, and harm
where it is a dead end. Here both are laid down behind the same held-out problems, and the model goes on:

    premature   right steps only: every switch throws away something right
    dead end    the same, but for the last step, which is wrong: the answer is out of reach, unless it is taken back
    its own     nothing is laid down

The exact labels of steps say which is which. By set, alpha (0 is without a penalty) and beta: the share of right
answers with its difference to alpha 0 on the same problems and the same draws, and of texts that switch at once, right
behind what was laid down; switches and tokens of a text; the share of texts with another mark that goes back or begins
anew (<wait>, <backtrack>, the word of a style), which no penalty holds; the underthinking of wrong answers
(training/comparing/metrics.py). Intervals are of 95 %.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import torch
from timing import announce

import mull
from mull.inference.measure.intervals import paired_share
from mull.inference.strategies import Branch, Manner, Marks, Solver
from mull.inference.strategies.solving import solver_of
from mull.inference.strategies.thought_switching import ThoughtSwitching
from mull.training.comparing.metrics import right_thought
from mull.training.data.streams import Stream
from mull.training.data.traced import Problem
from mull.training.data.traces import Draws, Step
from mull.training.evaluation import data_of

SETS = ("premature", "dead end", "its own")


class Begun(NamedTuple):
    """A problem, and what the model is to go on behind."""

    problem: Problem
    branch: Branch


class Outcome(NamedTuple):
    """What became of one begun thought."""

    right: bool
    at_once: bool
    switches: int
    tokens: int
    marked: bool
    underthinking: float


def sets_of(task: Any, solver: Solver, difficulty: int, problems: int, place: int) -> dict[str, list[Begun]]:
    """The held-out problems, with `place` right steps and then a right one or a wrong one behind them, or nothing."""
    given = task.problems("test", 0, problems, difficulty)
    derivations = task.derivations(task.items("test", 0, range(len(given)), difficulty), difficulty)
    stream, found = Stream("switching", task.name, difficulty), {name: list[Begun]() for name in SETS}
    for number, (problem, derivation) in enumerate(zip(given, derivations, strict=True)):
        if place >= len(derivation.steps):
            raise ValueError(f"--place {place}: problems of {difficulty} have {len(derivation.steps)} steps; use less")
        right = derivation.steps[: place + 1]
        wrong = [*right[:place], *derivation.astray(place, 1, Draws(stream.at(number)))]
        root = solver.begin(solver.marks.prompt(problem.text, "attempts"), (number,))
        for name, steps in zip(SETS, (right, wrong, []), strict=True):
            text = written(task, steps)
            labels = problem.steps(text)
            assert labels == [True] * len(steps) if name != "dead end" else labels == [True] * place + [False]
            found[name].append(Begun(problem, solver.append([root], text)[0] if text else root))
    return found


def written(task: Any, steps: Sequence[Step]) -> str:
    """Steps as they stand in a text."""
    return " ".join(" ".join([*(task.symbols[token] for token in step.full), Marks().step]) for step in steps)


def outcomes(solver: Solver, begun: Sequence[Begun], strategy: ThoughtSwitching, manner: Manner) -> list[Outcome]:
    """What the model makes of begun thoughts under a penalty."""
    texts = solver.write([each.branch for each in begun], manner, before=strategy.penalty(solver))
    return [outcome(solver.marks, *each, text) for each, text in zip(begun, texts, strict=True)]


def outcome(marks: Marks, problem: Problem, before: Branch, after: Branch) -> Outcome:
    """What became of one."""
    new = after.tokens[len(before.tokens) :]
    others = {*vars(marks).values()} - {marks.step, marks.switch, marks.end_of_thinking, marks.between}
    return Outcome(
        right=problem.check(marks.answer(after.text)),
        at_once=new[0].text.strip() == marks.switch,
        switches=sum(token.text.strip() == marks.switch for token in new),
        tokens=len(new),
        marked=any(token.text.strip() in others for token in new),
        underthinking=1 - right_thought(after.text, problem.steps(after.text), marks.switch, marks.step),
    )


def rows(
    solver: Solver, begun: Sequence[Begun], alphas: Sequence[float], betas: Sequence[int], manner: Manner
) -> Iterator[str]:
    """A line of the table for each penalty."""
    plain = outcomes(solver, begun, ThoughtSwitching(0.0, 0), manner)
    yield row("0", plain)
    for alpha in alphas:
        for beta in betas:
            found = outcomes(solver, begun, ThoughtSwitching(alpha, beta), manner)
            differences = [float(each.right) - float(other.right) for each, other in zip(found, plain, strict=True)]
            low, high = paired_share(differences, [1] * len(differences))
            said = f"{100 * fmean(differences):+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
            yield row(f"{alpha:g}:{beta}", found, said)


def row(penalty: str, found: Sequence[Outcome], difference: str = "") -> str:
    """A line of the table."""
    wrong = [each.underthinking for each in found if not each.right]
    return (
        f"  {penalty:<8}{100 * fmean(each.right for each in found):>6.1f}  {difference:<23}"
        f"{100 * fmean(each.at_once for each in found):>7.1f}{fmean(each.switches for each in found):>10.2f}"
        f"{fmean(each.tokens for each in found):>8.1f}{100 * fmean(each.marked for each in found):>9.1f}"
        f"{fmean(wrong) if wrong else 0:>10.2f} of {len(wrong)}"
    )


def main(options: argparse.Namespace) -> None:
    """Print a table of each set."""
    torch.set_num_threads(1)
    announce()
    model, task = mull.load(options.folder), data_of(options.folder).task
    solver, manner = solver_of(model), Manner(options.iterations, None, options.temperature, limit=options.tokens)
    found = sets_of(task, solver, options.difficulty, options.problems, options.place)
    shown = f"{len(found['its own'])} problems of {options.difficulty} {task.difficulty_name}"
    print(f"{options.folder}, {shown}, step {options.place + 1} right or wrong, temperature {options.temperature:g}")
    head = f"  {'penalty':<8}{'right':>6}  {'difference to none':<23}{'at once':>7}{'switches':>10}{'tokens':>8}"
    for name in SETS:
        print(f"{name}\n{head}{'marked':>9}{'underthinking':>15}", flush=True)
        for line in rows(solver, found[name], options.alphas, options.betas, manner):
            print(line, flush=True)


def numbers(text: str) -> list[float]:
    """1,3,10"""
    return [float(word) for word in text.split(",")]


def counts(text: str) -> list[int]:
    """8,16"""
    return [int(word) for word in text.split(",")]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default="reasoner", help="trained on traces of the style attempts")
    parser.add_argument("--difficulty", type=int, default=4)
    parser.add_argument("--problems", type=int, default=300)
    parser.add_argument("--place", type=int, default=1, help="right steps before the one that is right or wrong")
    parser.add_argument("--alphas", type=numbers, default=[1.0, 3.0, 10.0])
    parser.add_argument("--betas", type=counts, default=[8, 16])
    parser.add_argument("--iterations", type=int, help="of every token (default: the trained mean)")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--tokens", type=int, default=400, help="longest text")
    main(parser.parse_args())
