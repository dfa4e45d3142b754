"""Sudoku boards as sets of cells: what a digit rules out, a plain solver, puzzles with one solution, and symmetries.

A set of cells is an integer whose bit c is cell c, in reading order; for each digit there is the set of cells where it
may still stand. So one operation on integers works on the whole board.
"""

import math
from collections.abc import Callable, Iterator
from functools import cache
from hashlib import blake2b
from itertools import combinations, permutations
from typing import NamedTuple

import numpy as np

BOXES = {4: (2, 2), 6: (2, 3), 9: (3, 3)}  # rows and columns of a box, by the side of the board
MOST_HOLES = {4: 11, 6: 25, 9: 54}  # that are found without long search
Order = Callable[[int, list[int]], list[int]]  # (cell, its candidates) -> the candidates in the order they are tried


class Board(NamedTuple):
    """The geometry of a board.

    Attributes:
        side: digits, and cells of a row.
        houses: rows, columns and boxes, each the set of its cells.
        seen: by cell, the set of cells that share a house with it, itself included.
        rows, columns, boxes, bands, stacks: the number of each cell's row, column, box, row of boxes and column of
            boxes, (side^2,).
        members: which cells are in each of all these groups, one after the other, (groups, side^2) of 0 and 1.
        own: by kind of group, in this order, which of `members` is that of a cell, (5, side^2).
    """

    side: int
    houses: tuple[int, ...]
    seen: tuple[int, ...]
    rows: np.ndarray
    columns: np.ndarray
    boxes: np.ndarray
    bands: np.ndarray
    stacks: np.ndarray
    members: np.ndarray
    own: np.ndarray


@cache
def board_of(side: int) -> Board:
    """The geometry of boards with so many cells in a row, 4, 6 or 9; worked out once for each."""
    height, width = BOXES[side]
    rows, columns = np.divmod(np.arange(side * side), side)
    bands, stacks = rows // height, columns // width
    boxes = bands * height + stacks  # side / width = height stacks
    numbered = [(place, number) for place in (rows, columns, boxes) for number in range(side)]
    houses = tuple(cells_of(np.flatnonzero(place == number)) for place, number in numbered)
    seen = []
    for cell in range(side * side):
        around = 0
        for house in houses:
            around |= house if house >> cell & 1 else 0
        seen.append(around)
    kinds = np.stack([rows, columns, boxes, bands, stacks])
    sizes = kinds.max(axis=1) + 1
    own = kinds + (sizes.cumsum() - sizes)[:, None]
    members = (own[:, None] == np.arange(sizes.sum())[:, None]).any(axis=0).astype(np.uint64)
    return Board(side, houses, tuple(seen), rows, columns, boxes, bands, stacks, members, own)


def cells_of(numbers: np.ndarray) -> int:
    """The set of some cells."""
    return sum(1 << int(cell) for cell in numbers)


class Solver:
    """Fills the board by rules, and guesses where they end: always in the first cell with the fewest candidates.

    Rules: a cell with one candidate has that digit; a digit with one place in a house stands there.

    Attributes:
        guesses: digits that were tried in cells with several candidates, since the solver was made.
    """

    def __init__(self, board: Board) -> None:
        self.board, self.guesses = board, 0
        self.whole = (1 << board.side**2) - 1

    def solutions(self, puzzle: np.ndarray, order: Order | None = None) -> Iterator[np.ndarray]:
        """All completions of a puzzle (side^2,), 0 where a cell is blank; candidates are tried in ascending order, or
        in the one that `order` gives."""
        board = self.board
        places, blank = [self.whole] * board.side, self.whole
        for cell, digit in enumerate(puzzle.tolist()):
            if digit:
                if not places[digit - 1] >> cell & 1:
                    return  # two equal givens see each other
                blank ^= 1 << cell
                places[digit - 1] = places[digit - 1] & ~board.seen[cell] | 1 << cell
        given = self.whole ^ blank
        for digit in range(1, board.side + 1):
            places[digit - 1] &= ~(given ^ cells_of(np.flatnonzero(puzzle == digit)))
        yield from self.search(places, blank, order)

    def search(self, places: list[int], blank: int, order: Order | None) -> Iterator[np.ndarray]:
        """Completions of a board: `places` are the candidate cells of each digit, `blank` the cells without one."""
        state = self.filled(places, blank)
        if state is None:
            return
        blank, few = state
        if not blank:
            yield self.grid(places)
            return
        cell = (few & -few).bit_length() - 1
        candidates = [digit for digit, there in enumerate(places) if there >> cell & 1]
        for digit in candidates if order is None else order(cell, candidates):
            self.guesses += 1
            tried = list(places)
            self.put(tried, digit, cell)
            yield from self.search(tried, blank & ~(1 << cell), order)

    def filled(self, places: list[int], blank: int) -> tuple[int, int] | None:
        """Apply the rules, in place, until they end: the blank cells, and those of them with the fewest candidates.
        None where a cell or a digit has nowhere left."""
        while blank:
            once = twice = more = 0
            for there in places:
                more |= twice & there
                twice |= once & there
                once |= there
            if once != self.whole:
                return None
            single = blank & ~twice
            if single:
                for digit, there in enumerate(places):
                    chosen = there & single
                    while chosen:
                        one = chosen & -chosen
                        chosen ^= one
                        if not places[digit] & one:
                            return None
                        self.put(places, digit, one.bit_length() - 1, alone=True)
                blank &= ~single
                continue
            found = self.hidden(places, blank)
            if found is None:
                return None
            if found == 0:
                return blank, (blank & ~more) or self.fewest(places, blank)
            blank &= ~found
        return blank, 0

    def hidden(self, places: list[int], blank: int) -> int | None:
        """Put digits where a house has one place for them, in place: the cells that were filled; None where a house
        has no place for a digit."""
        filled = 0
        for digit in range(self.board.side):
            if not places[digit] & blank:
                continue
            for house in self.board.houses:
                there = places[digit] & house
                if not there & (there - 1):
                    if not there:
                        return None
                    if there & blank and not there & filled:
                        self.put(places, digit, there.bit_length() - 1)
                        filled |= there
        return filled

    def fewest(self, places: list[int], blank: int) -> int:
        """The blank cells with the fewest candidates, where no cell has two."""
        at_least = [0] * (self.board.side + 1)  # the cells with more than so many candidates
        for there in places:
            for count in range(self.board.side, 0, -1):
                at_least[count] |= at_least[count - 1] & there
            at_least[0] |= there
        return next(few for more in at_least[1:] if (few := blank & ~more))

    def put(self, places: list[int], digit: int, cell: int, alone: bool = False) -> None:
        """Put a digit in a cell; `alone` says that the cell has no other candidates."""
        one = 1 << cell
        if not alone:
            for other in range(len(places)):
                places[other] &= ~one
        places[digit] = places[digit] & ~self.board.seen[cell] | one

    def grid(self, places: list[int]) -> np.ndarray:
        """The board (side^2,) of digits that have one cell in every house."""
        side, grid = self.board.side, np.zeros(self.board.side**2, dtype=np.uint8)
        for digit, there in enumerate(places, start=1):
            bits = np.frombuffer(there.to_bytes(-(-side * side // 8), "little"), dtype=np.uint8)
            grid[np.unpackbits(bits, bitorder="little")[: side * side] == 1] = digit
        return grid


# ------------------------------------------------------------------------------------------------------ what is drawn


def random_grid(board: Board, rng: np.random.Generator) -> np.ndarray:
    """A complete board: boxes on the diagonal at random, the rest as a solver finds it that guesses at random."""
    height, width = BOXES[board.side]
    while True:
        puzzle = np.zeros(board.side**2, dtype=np.uint8)
        for number in range(min(board.side // height, board.side // width)):
            box = np.flatnonzero((board.bands == number) & (board.stacks == number))
            puzzle[box] = 1 + rng.permutation(board.side)

        def shuffled(_: int, candidates: list[int]) -> list[int]:
            return [candidates[i] for i in rng.permutation(len(candidates))]

        grid = next(Solver(board).solutions(puzzle, shuffled), None)
        if grid is not None:
            return grid


def another(board: Board, puzzle: np.ndarray, grid: np.ndarray) -> np.ndarray | None:
    """A completion of a puzzle that is not `grid`; None if there is no other."""
    own = grid.tolist()

    def other_first(cell: int, candidates: list[int]) -> list[int]:
        return sorted(candidates, key=lambda digit: digit + 1 == own[cell])

    found = Solver(board).solutions(puzzle, other_first)
    return next((solution for solution in found if (solution != grid).any()), None)


def dug(board: Board, grid: np.ndarray, holes: int, rng: np.random.Generator) -> np.ndarray | None:
    """A puzzle with this one solution and so many blank cells, (side^2,), 0 at the blanks; None if the cells that were
    drawn lead to none.

    Few cells are given first. While there is another solution, one of the cells where it differs is given too; then
    cells that need not be given are added, or taken away, until the number is right.
    """
    cells, wanted = board.side**2, board.side**2 - holes
    order = rng.permutation(cells)
    given = np.zeros(cells, dtype=bool)
    given[order[: max(0, min(wanted - cells // 9, cells // 2))]] = True
    while (other := another(board, np.where(given, grid, 0), grid)) is not None:
        if given.sum() > wanted + 2:
            return None
        differing = order[(other != grid)[order]]
        given[differing[0]] = True
    for cell in order[~given[order]]:
        if given.sum() >= wanted:
            break
        given[cell] = True
    for cell in order[given[order]]:
        if given.sum() <= wanted:
            break
        given[cell] = False
        given[cell] = another(board, np.where(given, grid, 0), grid) is not None
    return np.where(given, grid, 0).astype(np.uint8) if given.sum() == wanted else None


@cache
def puzzles_of_four(holes: int) -> tuple[np.ndarray, ...]:
    """Puzzles (16,) of 4 x 4 cells with one solution and so many blanks: at least one of each kind that there is but
    for symmetries. Blanks are taken but for symmetries, and each such choice on all boards, but for names of digits."""
    board, cells = board_of(4), np.arange(16).reshape(4, 4)
    lines = [list(order) for order in permutations(range(4)) if order[0] // 2 == order[1] // 2]  # bands stay together
    turned = [cells[rows][:, columns] for rows in lines for columns in lines]
    moves = np.stack([move.ravel() for kept in turned for move in (kept, kept.T)])  # (128, 16)
    blanks = np.zeros((math.comb(16, holes), 16), dtype=bool)
    for blank, chosen in zip(blanks, combinations(range(16), holes), strict=True):
        blank[list(chosen)] = True
    least = np.min([blanks[:, move] @ (1 << np.arange(16)) for move in moves], axis=0)  # of each and its images
    kinds = blanks[np.unique(least, return_index=True)[1]]
    begun = np.array([1, 2, 3, 4] + 12 * [0], dtype=np.uint8)
    found = [(np.where(blank, 0, grid), grid) for grid in Solver(board).solutions(begun) for blank in kinds]
    return tuple(puzzle for puzzle, grid in found if another(board, puzzle, grid) is None)


def rating(puzzle: np.ndarray) -> int:
    """Digits that the solver tries until it has solved a puzzle (side^2,); 0: the rules alone are enough."""
    solver = Solver(board_of(round(len(puzzle) ** 0.5)))
    next(solver.solutions(puzzle), None)
    return solver.guesses


# --------------------------------------------------------------------------------------------------------- symmetries


def signature(board: Board, puzzle: np.ndarray) -> bytes:
    """16 bytes that are equal for puzzles (side^2,) which are one and the same but for the names of the digits, the
    order of bands, of stacks, of rows within a band and of columns within a stack, and a reflection.

    Every cell has a number; in each round it takes in the sums of the numbers of its row and column, its band and
    stack, its box, and the cells of its digit. Complete boards look alike from every cell, so they begin with `woven`.
    Puzzles that differ may agree in all that; few do.
    """
    number = mixed(woven(board, puzzle) if puzzle.all() else (puzzle > 0).astype(np.uint64))
    digits = (puzzle == np.arange(board.side + 1)[:, None]).astype(np.uint64)
    digits[0] = 0  # blanks are no group
    for _ in range(4):
        sums = board.members @ number
        row, column, box, band, stack = sums[board.own]
        inner = box * np.uint64(3) + (digits @ number)[puzzle]
        around, beyond = mixed(row) + mixed(column), mixed(band) + mixed(stack)
        number = mixed(number + mixed(inner) + around * np.uint64(5) + beyond * np.uint64(7))
    return blake2b(np.sort(number).tobytes(), digest_size=16).digest()


def woven(board: Board, grid: np.ndarray) -> np.ndarray:
    """Of each cell of a complete board, how its row, its column and its digit go with the other rows, columns, digits.

    Two rows make a permutation of the digits, from one to the other column by column; so do two columns, and two digits
    one of the rows. Its cycles stay what they are under every symmetry.
    """
    side, row, column, digit = board.side, board.rows, board.columns, grid.astype(np.int64) - 1
    lines = np.empty((3, side, side), dtype=np.int64)  # by row, by column, by digit
    lines[0, row, column] = lines[1, column, row] = digit
    lines[2, digit, row] = column
    back = lines.argsort(axis=2)
    kind, one, other, place = np.ogrid[:3, :side, :side, :side]
    pairs = back[kind, other, lines[kind, one, place]]  # (3, n, n, n): from line one to line other
    code, power = np.zeros((3, side, side), dtype=np.uint64), pairs
    for _ in range(3):  # fixed points of powers 2 to 4 tell all cycles that there can be
        power = np.take_along_axis(pairs, power, axis=3)
        code = code * np.uint64(10) + (power == place).sum(axis=3).astype(np.uint64)
    first = np.arange(side) * side  # the cells of the first column
    together = np.zeros((3, side, side), dtype=np.uint64)
    together[0] = board.bands[first][:, None] == board.bands[first]
    together[1] = board.stacks[:side][:, None] == board.stacks[:side]
    own = mixed(mixed(code * np.uint64(2) + together).sum(axis=2))  # (3, n)
    return own[0, row] + own[1, column] + own[2, digit] * np.uint64(3)


def mixed(number: np.ndarray) -> np.ndarray:
    """A fixed random function of numbers of 64 bits (splitmix64, Steele et al. 2014)."""
    number = (number ^ number >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    number = (number ^ number >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return number ^ number >> np.uint64(31)
