"""The Pareto envelope of accuracy over FLOPs, and who owns it: which strategy is the best for a given budget.

A row is on the envelope if nothing cheaper, or as cheap, is as accurate. From its FLOPs on to those of the next one it
is the best that was measured; a strategy owns the share of the axis (log2 FLOPs, from the cheapest to the dearest row)
on which its rows are that. Strategies that ask the exact checker are left out: nobody has them.

The best of many cells is partly the luckiest of them. So every step up the envelope has its paired interval, and where
that contains 0 the step may be chance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mull.inference.measure.intervals import paired_share
from mull.training.comparing.cells import Cell


@dataclass(frozen=True)
class Best:
    """A row of the envelope.

    Attributes:
        difficulty, folder, strategy, iterations, accuracy: of the row.
        flops, up_to: FLOPs of a problem from which on, and to which, it is the best; up_to None is for good.
        gain, gain_low, gain_high: its accuracy less that of the one before, on the same problems, and the interval.
    """

    difficulty: int | None
    folder: str
    strategy: str
    iterations: int | None
    accuracy: float
    flops: float
    up_to: float | None
    gain: float | None
    gain_low: float | None
    gain_high: float | None


@dataclass(frozen=True)
class Owner:
    """How much of the envelope a strategy owns, 0 .. 1, on the axis of log2 FLOPs."""

    difficulty: int | None
    folder: str
    strategy: str
    share: float


def envelope(cells: Sequence[Cell]) -> list[Best]:
    """The envelope of each difficulty, from the cheapest row to the most accurate one."""
    found: list[Best] = []
    for difficulty in dict.fromkeys(cell.place.difficulty for cell in cells):
        best: list[tuple[float, Cell]] = []
        for flops, cell in priced(cells, difficulty):
            if not best or cell.right.mean() > best[-1][1].right.mean():
                best.append((flops, cell))
        for number, (flops, cell) in enumerate(best):
            place, earlier = cell.place, best[number - 1][1] if number else None
            up_to = best[number + 1][0] if number + 1 < len(best) else None
            found.append(
                Best(
                    difficulty, place.folder, place.strategy, place.iterations, float(cell.right.mean()), flops, up_to,
                    *gain_of(cell, earlier),
                )
            )  # fmt: skip
    return found


def priced(cells: Sequence[Cell], difficulty: int | None) -> list[tuple[float, Cell]]:
    """The cells of a difficulty whose FLOPs are known, with these, from the cheapest; of equals the best is first."""
    found = []
    for cell in cells:
        flops = cell.flops
        if cell.place.difficulty == difficulty and flops is not None and not cell.ceiling:
            found.append((float(flops.mean()), cell))
    return sorted(found, key=lambda pair: (pair[0], -pair[1].right.mean()))


def gain_of(cell: Cell, earlier: Cell | None) -> tuple[float | None, float | None, float | None]:
    """The difference of two cells in accuracy, and its paired interval; None where they have no problems in common."""
    if earlier is None or cell.problems != earlier.problems:
        return None, None, None
    difference = cell.right - earlier.right
    low, high = paired_share(difference.tolist(), [1] * len(difference))
    return float(difference.mean()), low, high


def owners(cells: Sequence[Cell]) -> list[Owner]:
    """Who owns the envelope of each difficulty, the largest share first."""
    found: list[Owner] = []
    rows = envelope(cells)
    for difficulty in dict.fromkeys(row.difficulty for row in rows):
        own = [row for row in rows if row.difficulty == difficulty]
        dearest = max(flops for flops, _ in priced(cells, difficulty))
        whole = math.log2(dearest / own[0].flops)
        shares: dict[tuple[str, str], float] = {}
        for row in own:
            length = math.log2((row.up_to or dearest) / row.flops)
            name = (row.folder, row.strategy)
            shares[name] = shares.get(name, 0.0) + (length / whole if whole else 1.0)
        ranked = sorted(shares.items(), key=lambda pair: -pair[1])
        found += [Owner(difficulty, folder, strategy, share) for (folder, strategy), share in ranked]
    return found
