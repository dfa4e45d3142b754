"""Many Sudoku boards at once: candidates as arrays, the rules of the plain solver, and puzzles with one solution.

For pools of puzzles (sudoku_pool.py), which a solver in Python would take minutes to fill. The rules are those of
`sudoku_boards.Solver`: a cell with one candidate has that digit; a digit with one place in a house stands there.

Shapes: N boards, C = side^2 cells in reading order. Candidates are (C, N) uint16, bit d - 1 for digit d: one operation
goes along the boards.
"""

from collections.abc import Iterable

import numpy as np

from mull.training.data.sudoku_boards import BOXES, Board

AT_ONCE = 2048  # boards that are worked on together: their candidates stay in a processor's cache
NONE, ONE = np.uint16(0), np.uint16(1)
SIZES = np.array([bin(digits).count("1") for digits in range(1 << 9)], dtype=np.uint8)  # digits of a set of them
MOST_NODES = 8 * AT_ONCE  # partial boards that are looked at together; the others wait


def settle(board: Board, candidates: np.ndarray) -> np.ndarray:
    """Apply the rules to candidates (C, N), in place, until they end: (N,) bool, false where a cell has no candidate
    left, a digit no place in a house, or two of them one place."""
    alive = np.ones(candidates.shape[1], dtype=bool)
    active = np.arange(candidates.shape[1])
    work = candidates
    while len(active):
        ruled, sound = ruled_once(board, work)
        moving = sound & (ruled != work).any(axis=0)
        alive[active[~sound]] = False
        candidates[:, active] = ruled
        active, work = active[moving], ruled[:, moving]
    return alive


def ruled_once(board: Board, candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Candidates (C, N) after each rule was applied once to all cells, and which boards have no contradiction, (N,)."""
    side, (height, width), count = board.side, BOXES[board.side], candidates.shape[1]
    boxed = (side // height, height, side // width, width, count)  # band, row in it, stack, column in it, board
    sound = np.ones(count, dtype=bool)

    def by_house(values: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Bits that occur at all, and those that occur twice, in each row, column and box, shaped to be broadcast."""
        square, box = values.reshape(side, side, count), values.reshape(boxed)
        rows = tally(square[:, column, None] for column in range(side))
        columns = tally(square[row, None] for row in range(side))
        boxes = tally(box[:, row, None, :, column, None] for row in range(height) for column in range(width))
        return [rows, columns, boxes]

    single = np.where(candidates & (candidates - ONE), NONE, candidates)
    left = candidates.copy()
    for house, (standing, twice) in enumerate(by_house(single)):
        shaped = left.reshape(boxed if house == 2 else (side, side, count))
        shaped &= ~standing
        sound &= ~twice.reshape(-1, count).any(axis=0)
    left |= single  # which have ruled out themselves too
    whole = np.uint16((1 << side) - 1)
    alone = np.zeros_like(left)  # by cell, the digits that have no other place in a house
    for house, (anywhere, twice) in enumerate(by_house(left)):
        shape = boxed if house == 2 else (side, side, count)
        alone.reshape(shape)[...] |= left.reshape(shape) & (anywhere & ~twice)
        sound &= (anywhere == whole).reshape(-1, count).all(axis=0)
    sound &= ~(alone & (alone - ONE)).any(axis=0)
    return np.where(alone, alone, left), sound & (left != 0).all(axis=0)


def tally(parts: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The bits that are in any of some arrays, and those that are in two."""
    once: np.ndarray | None = None
    for part in parts:
        if once is None:
            once, twice = part.copy(), np.zeros_like(part)
            continue
        twice |= once & part
        once |= part
    assert once is not None
    return once, twice


def solvable(board: Board, candidates: np.ndarray) -> np.ndarray:
    """Whether boards have any completion within their candidates (C, N), (N,) bool.

    A cell with the fewest candidates is its first one, or is not: both are looked at, for all boards together.
    """
    found = np.zeros(candidates.shape[1], dtype=bool)
    waiting = [(candidates.copy(), np.arange(candidates.shape[1]))]
    while waiting:
        nodes, owner = waiting.pop()
        open_ = ~found[owner]
        nodes, owner = nodes[:, open_], owner[open_]
        alive = settle(board, nodes)
        nodes, owner = nodes[:, alive], owner[alive]
        several = nodes & (nodes - ONE)
        done = ~several.any(axis=0)
        found[owner[done]] = True
        nodes, owner, several = nodes[:, ~done], owner[~done], several[:, ~done]
        if not len(owner):
            continue
        cell, branch = fewest(nodes, several), np.arange(len(owner))
        first = nodes[cell, branch] & -nodes[cell, branch]
        other = nodes.copy()
        nodes[cell, branch] = first
        other[cell, branch] ^= first
        nodes, owner = np.concatenate([nodes, other], axis=1), np.concatenate([owner, owner])
        for start in range(0, len(owner), MOST_NODES):
            waiting.append((nodes[:, start : start + MOST_NODES], owner[start : start + MOST_NODES]))
    return found


def fewest(candidates: np.ndarray, several: np.ndarray) -> np.ndarray:
    """The first cell with the fewest candidates, of those that have several, by board, (N,)."""
    return np.where(several, SIZES[candidates], SIZES.max() + 1).argmin(axis=0)


def random_grids(board: Board, count: int, rng: np.random.Generator) -> np.ndarray:
    """So many complete boards at random, (N, C) uint8: boxes on the diagonal at random, the rest by the rules, and by a
    random digit in a cell with the fewest candidates where these end. A board that leads nowhere begins anew."""
    side = board.side
    grids, left = begun(board, count, rng), np.arange(count)
    while len(left):
        work = grids[:, left]
        alive = settle(board, work)
        work[:, ~alive] = begun(board, int((~alive).sum()), rng)
        several = work & (work - ONE)
        cell, branch = fewest(work, several), np.arange(len(left))
        there = work[cell, branch] >> np.arange(side, dtype=np.uint16)[:, None] & ONE
        drawn = (rng.random((side, len(left))) * there).argmax(axis=0).astype(np.uint16)
        open_ = several.any(axis=0)
        work[cell[open_], branch[open_]] = ONE << drawn[open_]
        grids[:, left] = work
        left = left[open_]
    return (SIZES[grids - ONE] + 1).T.astype(np.uint8)  # below bit d - 1 there are d - 1 others


def begun(board: Board, count: int, rng: np.random.Generator) -> np.ndarray:
    """The candidates of so many boards, (C, N), whose boxes on the diagonal are filled at random."""
    side, (height, width) = board.side, BOXES[board.side]
    start = np.full((side**2, count), (1 << side) - 1, dtype=np.uint16)
    for number in range(min(side // height, side // width)):
        box = np.flatnonzero((board.bands == number) & (board.stacks == number))
        start[box] = ONE << rng.permuted(np.tile(np.arange(side, dtype=np.uint16)[:, None], (1, count)), axis=0)
    return start


def dug_from(board: Board, grids: np.ndarray, holes: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Puzzles of complete boards (N, C), one of each, with that one solution and so many blanks, 0 at the blanks; and
    which of them have so many, (N,) bool.

    Cells become blank in a random order, each where it can hold no other digit than its own: where no board has
    another digit there.
    """
    count, cells = grids.shape
    order = rng.permuted(np.tile(np.arange(cells), (count, 1)), axis=1)
    digit = ONE << (grids - 1).astype(np.uint16)  # (N, C), one bit each
    whole = np.uint16((1 << board.side) - 1)
    blank = np.zeros((count, cells), dtype=bool)
    digging = np.arange(count)
    for step in range(cells):
        digging = digging[blank[digging].sum(axis=1) < holes]
        if not len(digging):
            break
        cell, here = order[digging, step], np.arange(len(digging))
        candidates = np.where(blank[digging], whole, digit[digging]).T.copy()
        candidates[cell, here] = whole ^ digit[digging, cell]
        blank[digging, cell] = ~solvable(board, candidates)
    return np.where(blank, 0, grids).astype(np.uint8), blank.sum(axis=1) == holes
