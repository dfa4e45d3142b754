"""Sudoku: fill the blank cells so that every row, column and box holds every digit once.

A board is read cell by cell in reading order, 0 at the blanks, and each blank is answered where it stands, by a model
whose tokens see the whole board (`causal: false`), as in Palm et al., arXiv 1711.08028 (recurrent relational networks)
and Wang et al., arXiv 2506.21734 (hierarchical reasoning). Every puzzle has one solution. Boards, the solver and the
drawing of puzzles are in sudoku_boards.py, pools of them for long trainings in sudoku_pool.py.
"""

from collections.abc import Iterable
from typing import ClassVar, Literal, get_args

import numpy as np

from mull.training.data.sudoku_boards import MOST_HOLES, board_of, dug, puzzles_of_four, random_grid, rating, signature
from mull.training.data.sudoku_pool import pool_of, seen_anew
from mull.training.data.task import IGNORE, Split, Task

Side = Literal[4, 6, 9]
TRIES = 2000  # puzzles that are drawn on one board in search of one with as many holes and guesses as asked for


class Sudoku(Task):
    """Boards of 4 x 4 (boxes 2 x 2), 6 x 6 (2 x 3) and 9 x 9 cells (3 x 3). T = side^2; blanks are scored.

    Difficulty is the number of blank cells, up to 11, 25 and 54. How hard a puzzle is to reason about is another thing:
    `rating` (sudoku_boards.py) is the number of digits that a plain solver tries where its rules end, a cell with one
    candidate and a digit with one place in a house. Boards of 4 and 6 never need a guess; of those of 9 one in a
    hundred does at 45 holes, one in twenty at 50 and one in five at 54. With `guesses` only puzzles are drawn whose
    rating lies in a range.

    Puzzles that differ by the names of the digits, the order of bands and stacks, of the rows and columns within them,
    or a reflection, belong to one split, and a test has one of them. On boards of 9 the solution decides: no solution
    of a test puzzle, under whatever symmetry, is that of any training puzzle. There are too few smaller boards for that
    (two of 4 x 4 but for symmetries), so there the puzzle decides; boards of 4 have few, 79 for a test at 8 holes.

    A guess among the digits is right 1/side of the time.

    Args:
        holes: Default difficulty.
        side: Digits, and cells of a row: 4, 6 or 9.
        guesses: Least and most guesses of a puzzle, as [1, 20]; None: any. Each puzzle takes as many draws as such
            puzzles are rare.
        pool: Training items are drawn from so many puzzles of each difficulty, each seen under a random symmetry: tens
            of thousands a second, once the pool is there, which takes two milliseconds a puzzle and is kept in
            .cache/mull. None: every item is a new puzzle. Held-out items are the same with and without.
    """

    name: ClassVar[str] = "sudoku"
    difficulty_name: ClassVar[str] = "holes"
    purpose: ClassVar[str] = (
        "Fills in Sudoku boards, every blank where it stands: for seeing how many iterations it takes until all cells "
        "agree."
    )
    stop_symbols: ClassVar[tuple[str, ...]] = ()  # nothing is written behind the board
    in_place: ClassVar[bool] = True

    def __init__(
        self, holes: int = 40, side: Side = 9, guesses: list[int] | None = None, pool: int | None = None
    ) -> None:
        if side not in get_args(Side):
            raise ValueError(f"side must be one of {', '.join(map(str, get_args(Side)))}, not {side}")
        if guesses is not None and not (len(guesses) == 2 and 0 <= guesses[0] <= guesses[1]):
            raise ValueError(f"guesses is {guesses}: name the least and the most, as [1, 20]")
        if pool is not None and pool < 1:
            raise ValueError(f"pool is {pool}: it must be 1 or more puzzles, or null for new ones all the time")
        self.side, self.guesses, self.board, self.pool = side, guesses, board_of(side), pool
        self.pools: dict[tuple[int, int], np.ndarray] = {}  # by seed and difficulty
        self.default_difficulty = holes
        self.resolve(holes)

    @property
    def symbols(self) -> tuple[str, ...]:
        return tuple(map(str, range(self.side + 1)))  # 0 is a blank; a digit's id is its value

    def options(self) -> tuple[object, ...]:
        return (self.side, self.guesses)

    def answer_length(self, difficulty: int) -> int:  # noqa: ARG002
        return self.side**2

    def resolve(self, difficulty: int | None) -> int:
        holes = super().resolve(difficulty)
        if holes > MOST_HOLES[self.side]:
            raise ValueError(
                f"{holes} holes are more than are found quickly on a board of {self.side} x {self.side}: "
                f"use {MOST_HOLES[self.side]} or less"
            )
        return holes

    def draw(self, rng: np.random.Generator, difficulty: int) -> np.ndarray:
        """Puzzle and solution, (2, side^2); where the solution decides the split, nothing is blank before `finish`."""
        grid = random_grid(self.board, rng)
        item = np.stack([grid, grid])
        return item if self.side == 9 else self.finish(rng, item, difficulty)

    def finish(self, rng: np.random.Generator, item: np.ndarray, difficulty: int) -> np.ndarray:
        puzzle, grid = item
        if not puzzle.all():
            return item
        for _ in range(TRIES):
            found = dug(self.board, grid, difficulty, rng)
            if found is not None and self.has_guesses(found):
                return np.stack([found, grid])
        needed = "" if self.guesses is None else f" that needs {self.guesses[0]} to {self.guesses[1]} guesses"
        raise ValueError(
            f"no puzzle of {difficulty} holes{needed} was found among {TRIES} on one board of {self.side} x {self.side}"
            ": use other holes or a wider range of guesses"
        )

    def training_items(self, seed: int, indices: Iterable[int], difficulty: int) -> np.ndarray:
        self.prepare(seed, [difficulty])
        if self.pool is None:
            return super().training_items(seed, indices, difficulty)
        stream = self._stream("train", seed, difficulty)
        return seen_anew(self.board, self.pools[seed, difficulty], map(stream.at, indices))

    def prepare(self, seed: int, difficulties: Iterable[int]) -> None:
        if self.pool is None:
            return

        def early(item: np.ndarray) -> bool:
            return self.side != 9 or self.split_of(item) == "train"

        def late(item: np.ndarray) -> bool:
            return (self.side == 9 or self.split_of(item) == "train") and self.has_guesses(item[0])

        for holes in set(difficulties) - {known for of, known in self.pools if of == seed}:
            key = (*self.options(), seed, holes)
            self.pools[seed, holes] = pool_of(self.board, self.pool, holes, key, early, late)

    def has_guesses(self, puzzle: np.ndarray) -> bool:
        """Whether a puzzle needs as many guesses as are asked for."""
        return self.guesses is None or self.guesses[0] <= rating(puzzle) <= self.guesses[1]

    def canonical(self, item: np.ndarray) -> bytes:
        return signature(self.board, item[1] if self.side == 9 else item[0])

    def number_of(self, split: Split, difficulty: int) -> int | None:
        if self.side != 4:
            return None
        items = (np.stack([puzzle, puzzle]) for puzzle in puzzles_of_four(difficulty))  # the puzzle decides
        return sum(self.split_of(item) == split for item in {self.canonical(item): item for item in items}.values())

    def lay_out(self, items: np.ndarray, difficulty: int) -> tuple[np.ndarray, np.ndarray]:  # noqa: ARG002
        puzzles, solutions = items[:, 0].astype(np.int64), items[:, 1].astype(np.int64)
        return puzzles, np.where(puzzles == 0, solutions, IGNORE)

    def check(self, prompt: str, answer: str) -> bool:
        given, filled = prompt.split(), answer.split()
        if len(given) != self.side**2 or not set(given) <= set(self.symbols):
            raise ValueError(
                f"not a sudoku prompt: {prompt!r} (expected {self.side**2} cells with blanks between them, row by row: "
                f"digits 1 to {self.side}, and 0 where a cell is blank)"
            )
        if len(filled) != len(given) or any(cell not in ("0", own) for cell, own in zip(given, filled, strict=True)):
            return False
        for place in (self.board.rows, self.board.columns, self.board.boxes):
            houses: list[set[str]] = [set() for _ in range(self.side)]
            for house, digit in zip(place.tolist(), filled, strict=True):
                houses[house].add(digit)
            if any(house != set(self.symbols[1:]) for house in houses):
                return False
        return True
