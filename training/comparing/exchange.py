"""What doubling the iterations is worth: how many samples, and how many tokens, buy the same accuracy.

A base is a strategy that writes one answer (direct, chain, draft ...), at r iterations and at the next count r' that
was measured. What that step of d = log2(r' / r) doublings gains can be bought otherwise while r stays:

    samples   majority:N and others that draw N answers of the base's style, over N; N = 1 is the base
    tokens    strategies that write more than the base does, over the tokens that they write

    x*     = where the curve at r first reaches the accuracy of the base at r'   (crossing.py)
    factor = (x* / x0)^(1 / d), x0 = 1 sample, or the tokens of the base: how many times more, for one doubling
    cost   = FLOPs at x* / FLOPs of the base at r': above 1 the iterations are the cheaper way

Intervals are of the paired bootstrap (bootstrap.py), factor and all: in a draw in which iterating gains nothing the
factor is 1, in one in which no measured point reaches the height it is infinite. So an end of an interval that is
null says "more than was measured". Where the problems as they are have no crossing, the factor is null and the reason
says why; the ends of the interval are given all the same.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mull.inference.strategies import choose_strategy
from mull.training.comparing.bootstrap import Floats, interval, weights
from mull.training.comparing.cells import Cell, family_of
from mull.training.comparing.crossing import along, first_reached


@dataclass(frozen=True)
class Exchange:
    """One rate of exchange.

    Attributes:
        folder, difficulty: of the cells; difficulty None is all of them together.
        base: the strategy whose iterations are doubled.
        iterations, more_iterations: r and r'.
        accuracy, more_accuracy: of the base at r and at r'.
        currency: "samples" or "tokens".
        by: the strategies that the curve is made of.
        amount: samples or tokens of a problem with which the curve at r is as accurate as the base at r'.
        factor, factor_low, factor_high: how many times more samples or tokens do what one doubling does.
        cost, cost_low, cost_high: FLOPs of that, as a multiple of those of the base at r'.
        without_gain: share of the draws in which iterating gains nothing.
        out_of_reach: share of the draws in which no measured point is as accurate.
        reason: why there is no factor; None where there is one.
    """

    folder: str
    difficulty: int | None
    base: str
    iterations: int
    more_iterations: int
    accuracy: float
    more_accuracy: float
    currency: str
    by: tuple[str, ...]
    amount: float | None
    factor: float | None
    factor_low: float | None
    factor_high: float | None
    cost: float | None
    cost_low: float | None
    cost_high: float | None
    without_gain: float
    out_of_reach: float
    reason: str | None


@dataclass(frozen=True)
class Point:
    """A strategy at an iteration count, its difficulties one behind the other.

    Attributes:
        folder, difficulty: of its cells; difficulty None for several.
        strategy, iterations, samples, style: of its cells.
        right, tokens: of each problem.
        flops: of each problem; None where they were not counted.
        sizes: problems of each difficulty.
    """

    folder: str
    difficulty: int | None
    strategy: str
    iterations: int
    samples: int | None
    style: str | None
    right: Floats
    tokens: Floats
    flops: Floats | None
    sizes: tuple[int, ...]


def exchange(cells: Sequence[Cell], seed: int = 0) -> list[Exchange]:
    """All rates that cells allow: by folder and difficulty, and for all difficulties together where there are several.

    Cells that asked the exact checker are left out: what they reach is for sale to nobody. So are those of strategies
    that think at a depth of their own: they are not at the count that they stand under.
    """
    usable = [cell for cell in cells if not cell.ceiling and cell.place.iterations is not None and is_at_depth(cell)]
    found: list[Exchange] = []
    for folder in dict.fromkeys(cell.place.folder for cell in usable):
        own = [cell for cell in usable if cell.place.folder == folder]
        each = list(dict.fromkeys(cell.place.difficulty for cell in own))
        for chosen in [*([one] for one in each), *([each] if len(each) > 1 else [])]:
            points = points_of(own, chosen)
            if points:
                found += rates(points, weights(points[0].sizes, seed=seed))
    return found


def is_at_depth(cell: Cell) -> bool:
    """Whether what a cell reaches was reached at its iteration count."""
    return not choose_strategy(cell.place.strategy).own_depth


def points_of(cells: Sequence[Cell], difficulties: Sequence[int | None]) -> list[Point]:
    """The strategies and counts that were measured at all of these difficulties, on the same problems."""
    groups: dict[tuple[str, int], dict[int | None, Cell]] = {}
    for cell in cells:
        if cell.place.difficulty in difficulties and cell.place.iterations is not None:
            groups.setdefault((cell.place.strategy, cell.place.iterations), {})[cell.place.difficulty] = cell
    points: list[Point] = []
    for (strategy, iterations), by_difficulty in groups.items():
        if len(by_difficulty) < len(difficulties):
            continue
        chosen = [by_difficulty[difficulty] for difficulty in difficulties]
        flops = [cell.flops for cell in chosen]
        counted = [each for each in flops if each is not None]
        points.append(
            Point(
                chosen[0].place.folder, difficulties[0] if len(difficulties) == 1 else None, strategy, iterations,
                chosen[0].samples, chosen[0].style,
                np.concatenate([cell.right for cell in chosen]), np.concatenate([cell.tokens for cell in chosen]),
                np.concatenate(counted) if len(counted) == len(flops) else None,
                tuple(len(cell.answered) for cell in chosen),
            )
        )  # fmt: skip
    return [point for point in points if point.sizes == points[0].sizes]


def rates(points: Sequence[Point], draws: Floats) -> Iterator[Exchange]:
    """The rates of one folder and difficulty."""
    singles = [point for point in points if point.samples in (None, 1)]
    for base in singles:
        deeper = [one for one in singles if one.strategy == base.strategy and one.iterations > base.iterations]
        if not deeper:
            continue
        more = min(deeper, key=lambda one: one.iterations)
        beside = [one for one in points if one.iterations == base.iterations and one is not base]
        for family in families_over(base, beside):
            yield rate(base, more, family, "samples", draws)
        if base.samples is None:
            writers = [one for one in beside if one.samples is None and one.tokens.mean() > base.tokens.mean()]
            if writers:
                yield rate(base, more, writers, "tokens", draws)


def families_over(base: Point, beside: Sequence[Point]) -> Iterator[list[Point]]:
    """The curves over N that begin at the base: those of the same options, and of the style of the base.

    A family that was measured with N = 1 begins there, and at no other base.
    """
    groups: dict[str, list[Point]] = {}
    for one in [base, *beside]:
        if one.samples is not None:
            groups.setdefault(family_of(one.strategy), []).append(one)
    for group in groups.values():
        own = [one for one in group if one is not base]
        if own and (base in group if any(one.samples == 1 for one in group) else is_plain(base, own[0].style)):
            yield own


def is_plain(base: Point, style: str | None) -> bool:
    """Whether a strategy does nothing but write an answer of this style, as one named after the style does."""
    return style is not None and base.style == style and re.split("[:,]", base.strategy)[0] == style


def rate(base: Point, more: Point, others: Sequence[Point], currency: str, draws: Floats) -> Exchange:
    """One rate of exchange."""
    points = [base, *others]
    accuracy = np.stack([draws @ point.right for point in points], axis=1)
    height = draws @ more.right
    if currency == "samples":
        over = np.broadcast_to(np.array([float(point.samples or 1) for point in points]), accuracy.shape)
    else:
        over = np.stack([draws @ point.tokens for point in points], axis=1)
        over = np.maximum(over, over[:, :1])  # in a draw a strategy may write no more than the base
    reached = first_reached(over, accuracy, height)
    doublings = math.log2(more.iterations / base.iterations)
    factor = (reached / over[:, 0]) ** (1 / doublings)
    spent = [point.flops for point in points]
    counted = [each for each in spent if each is not None]
    cost = None
    if len(counted) == len(spent) and more.flops is not None:
        cost = along(over, np.stack([draws @ each for each in counted], axis=1), reached) / (draws @ more.flops)
    reason = reason_of(accuracy[0], float(height[0]), base, more, others)
    return Exchange(
        base.folder, base.difficulty, base.strategy, base.iterations, more.iterations, float(accuracy[0, 0]),
        float(height[0]), currency, tuple(point.strategy for point in others),
        None if reason else float(reached[0]),
        *ends(factor, reason), *ends(cost, reason),
        float((height <= accuracy[:, 0])[1:].mean()), float(np.isinf(reached)[1:].mean()), reason,
    )  # fmt: skip


def ends(values: Floats | None, reason: str | None) -> tuple[float | None, float | None, float | None]:
    """A quantity, whose row 0 is that of the problems as they are, and its interval; None for what is not finite."""
    if values is None:
        return None, None, None
    bounds = [each if math.isfinite(each) else None for each in interval(values[1:])]
    return None if reason else float(values[0]), bounds[0], bounds[1]


def reason_of(accuracy: Floats, height: float, base: Point, more: Point, others: Sequence[Point]) -> str | None:
    """Why there is no rate, for people; None where there is one."""
    if height <= accuracy[0]:
        now, then = f"{100 * accuracy[0]:.1f} % at {base.iterations}", f"{100 * height:.1f} % at {more.iterations}"
        return f"no gain: {now}, {then} iterations"
    if accuracy.max() >= height:
        return None
    best = int(accuracy[1:].argmax())
    return f"out of reach: {others[best].strategy} is at {100 * accuracy[1:].max():.1f} %, not at {100 * height:.1f} %"
