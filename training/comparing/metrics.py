"""Metrics that papers on test-time compute report, worked out of the cells of a comparison.

    s1             Muennighoff et al. (2025, arXiv:2501.19393): control, scaling, performance of a knob
    underthinking  Wang et al. (2025, arXiv:2501.18585): how much of a wrong answer came after a right thought
    bins           Liu et al. (2025, arXiv:2502.06703): accuracy by the Pass@1 of the problem, in absolute bins
    drafts         Xu et al. (2025, arXiv:2502.18600): tokens and accuracy of drafts against those of chains

s1: with f(a) the accuracy at the budget a, and A the budgets that were measured, those of several caps on one curve,

    control     = share of runs whose thinking has as many tokens as they were told (a cap, of budget forcing)
    scaling     = mean over a < b in A of (f(b) - f(a)) / (b - a)
    performance = max over A of f

Underthinking: xi = mean over wrong answers of 1 - T' / T, with T tokens, and T' those up to the end of the first
attempt that is on a right path (T' = T if there is none). The paper has a language model say which thoughts are right;
here the exact labels of the steps say it: an attempt is on a right path if it has a step, and the right answer could
still be reached after every one of its steps.

Bins: a problem is easy from a Pass@1 of 50 %, medium from 10 %, hard below. Pass@1 is the share of right ones among the
answers that the strategy with the most samples drew; it is noisy with few of these. It must not go by what it is then
told of: a problem has one seed, so that the first N texts are the same for all that draw N, and a problem would be hard
because these came out wrong. Those that other strategies drew are therefore left out of it, and a strategy that leaves
fewer than `FEWEST` over gets no row: give `majority:16` for what draws up to 12.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from statistics import fmean
from typing import Any

from mull.inference.measure.intervals import clustered_mean, paired_share, wilson
from mull.inference.strategies import Marks, Strategy, choose_strategy
from mull.inference.strategies.chain import Chain
from mull.inference.strategies.compute_optimal import BINS, bin_at
from mull.inference.strategies.draft import Draft
from mull.training.comparing.cells import Answered, Cell, family_of

Numbers = dict[str, Any]
ByFolder = Mapping[str, Marks]  # the texts by which each folder's writer structures what it writes
FEWEST = 4  # samples by which a Pass@1 is told


def words(text: str) -> int:
    """The tokens of a text whose tokens are words between blanks."""
    return len(text.split())


def thinking(answered: Answered, marks: Marks) -> int:
    """The tokens of a text's thinking; words of it where these are not known. The mark that closes its last step is
    left out, since it is put there, beyond the cap, where a thinking is cut off within a step."""
    if answered.thinking is not None:
        return answered.thinking
    return words(answered.text.partition(marks.end_of_thinking)[0].strip().removesuffix(marks.step))


# s1 -------------------------------------------------------------------------------------------------------------------


def control(tokens: Sequence[float], least: float | None, most: float | None) -> float | None:
    """Share of the runs whose tokens lie within the limits; None where there are no limits."""
    if least is None and most is None:
        return None
    return fmean((least is None or least <= each) and (most is None or each <= most) for each in tokens)


def scaling(budgets: Sequence[float], accuracies: Sequence[float]) -> float | None:
    """Mean slope over all pairs of different budgets; None for fewer than two of them."""
    pairs = combinations(sorted(zip(budgets, accuracies, strict=True)), 2)
    slopes = [(f - g) / (b - a) for (a, g), (b, f) in pairs if a < b]
    return fmean(slopes) if slopes else None


def knob_of(strategy: str) -> str:
    """The name of strategies that differ in their first value and in their cap only."""
    return family_of(strategy, "cap")


def s1(cells: Sequence[Cell], marks: ByFolder) -> Iterator[Numbers]:
    """The numbers of every knob with at least two budgets: over tokens that of each family of strategies, and over
    iterations, its twin in depth, that of each strategy."""
    curves: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in cells:
        place = cell.place
        here = (place.folder, place.difficulty)
        curves.setdefault((*here, "tokens", knob_of(place.strategy), place.iterations), []).append(cell)
        if place.iterations is not None and not choose_strategy(place.strategy).own_depth:
            curves.setdefault((*here, "iterations", place.strategy, None), []).append(cell)
    for (folder, difficulty, knob, strategy, iterations), own in curves.items():
        budgets = [float(cell.tokens.mean() if knob == "tokens" else cell.place.iterations or 0) for cell in own]
        slope = scaling(budgets, [float(cell.right.mean()) for cell in own])
        if slope is None:
            continue
        long = [[thinking(each, marks[folder]) for each in cell.answered] for cell in own]
        held = [control(t, *cell.limits) for t, cell in zip(long, own, strict=True)] if knob == "tokens" else []
        limited = [each for each in held if each is not None]
        yield {
            "metric": "s1", "folder": folder, "difficulty": difficulty, "strategy": strategy, "iterations": iterations,
            "knob": knob, "control": fmean(limited) if limited else None, "scaling": slope,
            "performance": max(float(cell.right.mean()) for cell in own), "budgets": len(own),
        }  # fmt: skip


# Underthinking --------------------------------------------------------------------------------------------------------


def underthinking(cells: Sequence[Cell], marks: ByFolder) -> Iterator[Numbers]:
    """The score of every cell whose steps have exact labels, over its wrong answers."""
    for cell in cells:
        switch, step = marks[cell.place.folder].switch, marks[cell.place.folder].step
        scores = [
            1 - right_thought(each.text, each.labels, switch, step)
            for each in cell.answered
            if not each.right and each.labels is not None and each.text
        ]
        if not any(each.labels is not None for each in cell.answered):
            continue
        bounds = clustered_mean(scores, [1] * len(scores)) if scores else None
        attempts = [1 + each.text.count(switch) for each in cell.answered]
        yield {
            "metric": "underthinking", "folder": cell.place.folder, "difficulty": cell.place.difficulty,
            "strategy": cell.place.strategy, "iterations": cell.place.iterations,
            "underthinking": fmean(scores) if scores else None,
            "low": None if bounds is None else max(0.0, bounds.low),
            "high": None if bounds is None else min(1.0, bounds.high),
            "wrong": len(scores), "with_a_right_thought": sum(score > 0 for score in scores),
            "attempts": fmean(attempts),
        }  # fmt: skip


def right_thought(text: str, labels: Sequence[bool], switch: str, step: str) -> float:
    """T' / T: the share of a text up to the end of its first attempt that is on a right path; 1 if there is none.

    Args:
        text: what was written.
        labels: for each end of a step in it, whether the right answer could still be reached then.
        switch, step: the marks.
    """
    whole, done, steps = words(text), 0, 0
    attempts = text.split(switch)
    for number, attempt in enumerate(attempts):
        done += words(attempt)
        own = list(labels[steps : steps + attempt.count(step)])
        steps += attempt.count(step)
        if own and all(own):
            return done / whole
        if number + 1 < len(attempts):
            done += words(switch)
    return 1.0


# Bins -----------------------------------------------------------------------------------------------------------------


def bins(cells: Sequence[Cell], marks: ByFolder) -> Iterator[Numbers]:  # noqa: ARG001 (as every metric)
    """Accuracy of every cell on the problems of each bin, for folders with a cell of at least `FEWEST` samples.

    Problems are binned once for a folder and difficulty, by its cell with the most samples and then the most
    iterations, so that all strategies and depths are compared on the same problems.
    """
    for folder, difficulty in dict.fromkeys((cell.place.folder, cell.place.difficulty) for cell in cells):
        own = [cell for cell in cells if (cell.place.folder, cell.place.difficulty) == (folder, difficulty)]
        rated = [(sampled, cell.place.iterations or 0, cell) for cell in own if (sampled := fewest(cell)) >= FEWEST]
        if not rated:
            continue
        all_of_it, _, judge = max(rated, key=lambda each: each[:2])
        shared = max((n for n in map(texts_of, own) if n <= all_of_it - FEWEST), default=0)
        names = [bin_at(fmean((each.samples or ())[shared:])) for each in judge.answered]
        for cell in (each for each in own if texts_of(each) <= max(shared, 1)):
            for name in BINS:
                right = [each.right for each, bin in zip(cell.answered, names, strict=True) if bin == name]
                bounds = wilson(sum(right), len(right)) if right else (None, None)
                yield {
                    "metric": "bins", "folder": folder, "difficulty": difficulty, "strategy": cell.place.strategy,
                    "iterations": cell.place.iterations, "bin": name, "accuracy": fmean(right) if right else None,
                    "low": bounds[0], "high": bounds[1], "examples": len(right),
                    "by": f"{judge.place.strategy}, {judge.place.iterations or 'no'} iterations, less {shared} texts",
                }  # fmt: skip


def fewest(cell: Cell) -> int:
    """The least number of samples that a problem of a cell has."""
    return min(len(each.samples or ()) for each in cell.answered)


def texts_of(cell: Cell) -> int:
    """How many texts a strategy drew for a problem at most, whether it chose among whole ones or on the way."""
    return max(cell.samples or 1, *(len(each.samples or ()) for each in cell.answered))


# Drafts ---------------------------------------------------------------------------------------------------------------


def drafts(cells: Sequence[Cell], marks: ByFolder) -> Iterator[Numbers]:  # noqa: ARG001 (as every metric)
    """Drafts against chains of the same folder, difficulty and depth: tokens, and the paired difference in accuracy."""
    known = {name: choose_strategy(name) for name in dict.fromkeys(cell.place.strategy for cell in cells)}
    for draft in cells:
        wanted = chain_of(known[draft.place.strategy])
        if wanted is None:
            continue
        beside = (cell for cell in cells if where(cell) == where(draft) and cell.problems == draft.problems)
        chain = next((cell for cell in beside if known[cell.place.strategy] == wanted), None)
        if chain is None:
            continue
        difference = draft.right - chain.right
        low, high = paired_share(difference.tolist(), [1] * len(difference))
        yield {
            "metric": "drafts", "folder": draft.place.folder, "difficulty": draft.place.difficulty,
            "strategy": draft.place.strategy, "iterations": draft.place.iterations,
            "tokens": float(draft.tokens.mean()),
            "tokens_of_chain": float(chain.tokens.mean()),
            "share_of_tokens": float(draft.tokens.mean() / chain.tokens.mean()),
            "difference": float(difference.mean()), "low": low, "high": high,
        }  # fmt: skip


def where(cell: Cell) -> tuple[str, int | None, int | None]:
    """Folder, difficulty and depth of a cell."""
    return cell.place.folder, cell.place.difficulty, cell.place.iterations


def chain_of(strategy: Strategy) -> Strategy | None:
    """What a strategy that writes drafts is when it writes chains; None for one that writes none."""
    if isinstance(strategy, Draft):
        return Chain()
    return replace(strategy, style="chain") if getattr(strategy, "style", None) == "draft" else None  # type: ignore[call-arg]


METRICS: dict[str, Callable[[Sequence[Cell], ByFolder], Iterator[Numbers]]] = {
    "s1": s1, "underthinking": underthinking, "bins": bins, "drafts": drafts,
}  # fmt: skip
