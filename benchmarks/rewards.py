"""What do process rewards know of a model's own texts? python benchmarks/rewards.py FOLDER [FOLDER ...] [--style chain]

The folders are one model with different reward heads, as `mull train --from FOLDER --config configs/reward.yaml` makes
them; a folder that differs in another weight is refused. The first one writes N texts for every held-out problem, by
the draws of `mull compare` with the same seed, so that what is chosen here is what best_of_n chooses there. All heads
judge the same texts.

Printed for each head: the area under the ROC curve of its judgements against the exact labels, of all steps and after
the first, the second ... (50 is chance); of a right and a wrong text of one problem, how often the right one has the
better path; and the right answers of best_of_n at 2, 4 ... N, for each aggregation. Then the scorers without a head.
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

import mull
from mull.inference.strategies import Problem
from mull.inference.strategies.best_of_n import Sampling
from mull.inference.strategies.choosing import Candidate, aggregated, choose
from mull.inference.strategies.contract import Found, answer_of
from mull.inference.strategies.scorers import Judged, choose_scorer
from mull.inference.strategies.solver import Branch, Key, Manner, Solver, seed_of
from mull.inference.strategies.solving import solve, solver_of
from mull.inference.strategies.together import solve_together
from mull.models import LanguageModel
from mull.training.evaluation import data_of

AGGREGATIONS = ("last", "min", "product")
CONTROLS = ("log_probability", "random", "oracle")
ROWS = 128  # texts that are read at once


@dataclass(frozen=True)
class Keeping(Sampling):
    """Draws as best_of_n does, keeps the texts by their problem, and chooses none."""

    name = example = "keeping"
    kept: ClassVar[dict[str, tuple[Judged, list[Branch]]]] = {}

    def solve(self, problem: Problem, solver: Solver, manner: Manner, key: Key) -> Found:
        branches = self.drawn(problem, solver, manner, key)
        self.kept[problem.text] = (Judged(problem, solver, manner, self.style), branches)
        return Found(branches[0], self.style)


@dataclass
class Text:
    """A text that was drawn, with all that is known of it.

    Attributes:
        branch: the text.
        answer: in it.
        right: whether that is right.
        labels: whether the answer can still be reached after each step.
        states: (S, D), what a head reads at the end of each step.
    """

    branch: Branch
    answer: str
    right: bool
    labels: list[bool]
    states: Tensor


def heads(folders: list[str]) -> tuple[LanguageModel, dict[str, Any]]:
    """The model, and its heads by folder. Raises ValueError where folders differ in more than that."""
    model, found = mull.load(folders[0]), dict[str, Any]()
    own = model.state_dict()
    for folder in folders:
        other = mull.load(folder)
        if other.value_head is None:
            raise ValueError(f"{folder} has no reward head: train one with configs/reward.yaml")
        weights = other.state_dict()
        for name in {*own, *weights}:
            same = name in own and name in weights and torch.equal(weights[name], own[name])
            if not name.startswith("value_head.") and not same:
                raise ValueError(f"{folder} and {folders[0]} differ in {name}: compare heads of one model")
        found[folder] = other.value_head
    return model, found


def drawn(model: LanguageModel, options: argparse.Namespace) -> list[tuple[Judged, list[Branch]]]:
    """What the model writes for each problem."""
    task: Any = data_of(options.folders[0]).task  # type: ignore[attr-defined]
    problems = [Problem(*each) for each in task.problems("test", options.seed, options.examples, options.difficulty)]
    strategy = Keeping(options.samples, options.style)

    def job(number: int) -> Any:
        how = {"generator": seed_of((options.seed,), number), "iterations": options.iterations}
        return lambda solver: solve(solver, problems[number], strategy, **how)

    for _ in solve_together(solver_of(model), [job(number) for number in range(len(problems))], 8):
        pass
    return [strategy.kept[problem.text] for problem in problems]


@torch.inference_mode()
def states_of(model: LanguageModel, rows: list[tuple[tuple[int, ...], list[int]]], iterations: int) -> list[Tensor]:
    """What a head reads of each row of token ids, at its places."""
    seen, found = list[Tensor](), list[Tensor]()
    assert model.value_head is not None
    hook = model.value_head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    for first in range(0, len(rows), ROWS):
        part = rows[first : first + ROWS]
        longest = max(len(ids) for ids, _ in part)
        model(torch.tensor([[*ids, *[ids[-1]] * (longest - len(ids))] for ids, _ in part]), iterations=iterations)
        found += [states[places] for states, (_, places) in zip(seen.pop(), part, strict=True)]
    hook.remove()
    return found


def texts_of(model: LanguageModel, kept: list[tuple[Judged, list[Branch]]], depth: int) -> list[list[Text]]:
    """The texts of each problem, read at a depth."""
    rows = []
    for judged, branches in kept:
        for branch in branches:
            prompt = len(branch.memory.ids) - len(branch.tokens)
            ends = branch.ends(judged.solver.marks.step) or [len(branch.tokens)]  # as the scorer `process` does
            rows.append((branch.memory.ids, [prompt + end - 1 for end in ends]))
    states, found = iter(states_of(model, rows, depth)), []
    for judged, branches in kept:
        of_problem, steps, check = [], judged.problem.steps, judged.problem.check
        assert steps is not None and check is not None
        for branch in branches:
            answer = answer_of(judged.solver.marks, branch, judged.style)
            of_problem.append(Text(branch, answer, check(answer), steps(branch.text), next(states)))
        found.append(of_problem)
    return found


def area(scores: list[float], labels: list[bool]) -> float:
    """The area under the ROC curve in percent: how often a true one is scored above a false one, ties half."""
    values, right = torch.tensor(scores, dtype=torch.float64), torch.tensor(labels)
    _, place, count = values.unique(return_inverse=True, return_counts=True)
    last = count.cumsum(dim=0)
    rank = (last - (count - 1) / 2)[place]  # the mean rank of equal ones
    true, false = int(right.sum()), int((~right).sum())
    return 100 * float(rank[right].sum() - true * (true + 1) / 2) / (true * false) if true and false else float("nan")


def chosen_right(rows: list[list[Candidate]], right: list[list[bool]], samples: int) -> float:
    """Right answers in percent where the best of the first samples is taken."""
    found = 0
    for candidates, fine in zip(rows, right, strict=True):
        found += fine[candidates.index(choose(candidates[:samples], "max"))]
    return 100 * found / len(rows)


def report(
    name: str, texts: list[list[Text]], scores: list[list[list[float]]], samples: list[int], by_step: bool
) -> None:
    """Print what a scorer knows, from its scores of each text after each step."""
    print(name)
    if by_step:
        pairs = [
            (number, score, label)
            for of_problem, scored in zip(texts, scores, strict=True)
            for text, path in zip(of_problem, scored, strict=True)
            for number, (score, label) in enumerate(zip(path, text.labels, strict=False))
        ]
        areas = [area(*map(list, zip(*[pair[1:] for pair in pairs], strict=True)))]
        for number in range(max(pair[0] for pair in pairs) + 1):
            own = [pair[1:] for pair in pairs if pair[0] == number]
            if len(own) > len(pairs) / 20:  # not the few that are longer than the rest
                areas.append(area(*map(list, zip(*own, strict=True))))
        print(f"  area, all steps {areas[0]:.1f}; by step", " ".join(f"{each:.1f}" for each in areas[1:]))
    for how in AGGREGATIONS if by_step else ("last",):
        rows = [
            [Candidate(text.branch, text.answer, aggregated(path, how)) for text, path in zip(*each, strict=True)]
            for each in zip(texts, scores, strict=True)
        ]
        right = [[text.right for text in of_problem] for of_problem in texts]
        won = [
            (a.path > b.path) + (a.path == b.path) / 2
            for candidates, fine in zip(rows, right, strict=True)
            for (a, good), (b, bad) in itertools.permutations(zip(candidates, fine, strict=True), 2)
            if good and not bad
        ]
        best = " ".join(f"{chosen_right(rows, right, each):.1f}" for each in samples)
        print(f"  {how:8} right above wrong {100 * sum(won) / max(1, len(won)):.1f}; best_of_n {best}", flush=True)


def main(options: argparse.Namespace) -> None:
    """Print all of it."""
    torch.set_num_threads(1)
    model, found = heads(options.folders)
    kept = drawn(model, options)
    texts = texts_of(model, kept, options.judge_at or options.iterations)
    samples = [2**k for k in range(1, options.samples.bit_length()) if 2**k <= options.samples]
    fine = sum(text.right for of_problem in texts for text in of_problem) / sum(map(len, texts))
    print(f"{len(texts)} problems, N = {samples}; {100 * fine:.1f} % of the texts are right")
    for folder, head in found.items():
        with torch.inference_mode():
            scores = [[head(text.states).squeeze(-1).double().sigmoid().tolist() for text in each] for each in texts]
        report(folder, texts, scores, samples, by_step=True)
    for name in CONTROLS:
        scores = [choose_scorer(name).scores(judged, branches) for judged, branches in kept]
        report(name, texts, scores, samples, by_step=False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--difficulty", type=int)
    parser.add_argument("--examples", type=int, default=300)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--style", default="chain")
    parser.add_argument("--iterations", type=int, default=1, help="that are written with")
    parser.add_argument("--judge-at", type=int, help="iterations that are judged with; those that are written with")
    parser.add_argument("--seed", type=int, default=0)
    main(parser.parse_args())
