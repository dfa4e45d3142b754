"""Sudoku against brute force over all boards of 4 x 4, a slow solver, known puzzles, and every symmetry."""

import itertools
from typing import Any, get_args

import numpy as np
import pytest

from mull.training.data import IGNORE, Split, Sudoku
from mull.training.data.sudoku_boards import (
    BOXES,
    MOST_HOLES,
    Solver,
    board_of,
    puzzles_of_four,
    random_grid,
    rating,
    signature,
)

SIDES = (4, 6, 9)
HELD_OUT: tuple[Split, ...] = ("validation", "test")
every_side = pytest.mark.parametrize("side", SIDES)
HARD = "800000000003600000070090200050007000000045700000100030001000068008500010090000400"
SOLVED = "812753649943682175675491283154237896369845721287169534521974368438526917796318452"


def cells(text: str) -> np.ndarray:
    return np.array([int(digit) for digit in text])


def all_solutions(puzzle: np.ndarray) -> list[np.ndarray]:
    return list(Solver(board_of(round(len(puzzle) ** 0.5))).solutions(puzzle))


def slow_solutions(puzzle: list[int], side: int) -> list[list[int]]:
    """All completions by trying every digit in the blank cell that has the fewest left, with nothing clever."""
    height, width = BOXES[side]

    def seen(one: int, other: int) -> bool:
        (r, c), (s, d) = divmod(one, side), divmod(other, side)
        return r == s or c == d or (r // height == s // height and c // width == d // width)

    left = {
        cell: {*range(1, side + 1)} - {puzzle[other] for other in range(side**2) if seen(cell, other)}
        for cell in range(side**2)
        if puzzle[cell] == 0
    }
    if not left:
        return [puzzle]
    cell = min(left, key=lambda blank: len(left[blank]))
    return [
        found for digit in left[cell] for found in slow_solutions([*puzzle[:cell], digit, *puzzle[cell + 1 :]], side)
    ]


def moved(board: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """The same board under a random symmetry: digits, bands, rows in them, stacks, columns in them, a reflection."""
    height, width = BOXES[side]
    digits = np.concatenate([[0], 1 + rng.permutation(side)])
    rows = np.concatenate([height * band + rng.permutation(height) for band in rng.permutation(side // height)])
    columns = np.concatenate([width * stack + rng.permutation(width) for stack in rng.permutation(side // width)])
    square = digits[board].reshape(side, side)[rows][:, columns]
    return (square.T if height == width and rng.integers(2) else square).flatten()


def test_the_solver_finds_all_boards_of_four() -> None:
    """288 of them; and from any givens just those of the 288 that agree with them."""
    boards = np.array(all_solutions(np.zeros(16, dtype=int)))
    assert len(np.unique(boards, axis=0)) == len(boards) == 288
    rng = np.random.default_rng(0)
    for kept in (0, 1, 3, 4, 5, 8):
        for _ in range(20):
            given = rng.permutation(16) < kept
            puzzle = np.where(given, boards[rng.integers(288)], 0)
            puzzle[rng.integers(16)] = rng.integers(5)  # sometimes a contradiction
            agreeing = boards[((boards == puzzle) | (puzzle == 0)).all(axis=1)]
            found = all_solutions(puzzle)
            assert sorted(map(tuple, found)) == sorted(map(tuple, agreeing))


@pytest.mark.parametrize(("side", "holes"), [(4, 7), (4, 10), (6, 9), (6, 25), (9, 30), (9, 50)])
def test_every_puzzle_has_so_many_blanks_and_one_solution(side: Any, holes: int) -> None:
    """Which is what the labels say, and a slow solver too."""
    task = Sudoku(holes, side=side)
    puzzles, labels = map(np.concatenate, zip(*(task.batch(s, 0, range(2)) for s in get_args(Split)), strict=True))
    assert puzzles.shape == (6, side**2) and ((puzzles == 0).sum(axis=1) == holes).all()
    assert ((labels == IGNORE) == (puzzles > 0)).all()
    for puzzle, told in zip(puzzles, labels, strict=True):
        solved = np.where(puzzle > 0, puzzle, told)
        assert slow_solutions(puzzle.tolist(), side) == [solved.tolist()]
        assert task.check(" ".join(map(str, puzzle)), " ".join(map(str, solved)))


def test_a_hard_puzzle_needs_guesses() -> None:
    """A puzzle that is known to be hard, and its solution; and one of its cells away the rules alone are enough."""
    assert np.array_equal(all_solutions(cells(HARD)), [cells(SOLVED)])
    assert rating(cells(HARD)) == 172  # an exact figure of this solver: with weaker rules or another cell it is another
    almost = cells(SOLVED)
    almost[:9] = 0
    assert rating(almost) == 0


def test_a_rating_of_zero_is_one_that_two_rules_solve() -> None:
    """The rules once more, cell by cell and house by house: puzzles that they fill are just those rated 0."""
    board, easy = board_of(9), []
    houses = [[cell for cell in range(81) if house >> cell & 1] for house in board.houses]
    task = Sudoku(53)
    for index in range(8):
        puzzle = task.example("train", 1, index).input_ids
        filled, before = puzzle.copy(), None
        while before is None or (filled != before).any():
            before = filled.copy()
            left = {
                cell: {*range(1, 10)} - {int(filled[other]) for house in houses if cell in house for other in house}
                for cell in np.flatnonzero(filled == 0).tolist()
            }
            for cell, digits in left.items():
                alone = [
                    digit
                    for digit in digits
                    if any(cell in h and sum(digit in left.get(other, ()) for other in h) == 1 for h in houses)
                ]
                if len(digits) == 1 or alone:
                    filled[cell] = min(alone or digits)
                    break  # what is left elsewhere has changed
        easy.append(bool(filled.all()))
        assert (rating(puzzle) == 0) == easy[-1]
    assert any(easy)


@pytest.mark.parametrize("guesses", [[0, 0], [1, 30]])
def test_guesses_choose_among_puzzles(guesses: list[int]) -> None:
    """Only puzzles whose rating lies in the range are drawn."""
    task = Sudoku(52, guesses=guesses)
    found = [rating(task.example("train", 0, index).input_ids) for index in range(3)]
    assert all(guesses[0] <= each <= guesses[1] for each in found)


@every_side
@pytest.mark.parametrize("whole", [False, True])
def test_a_signature_survives_every_symmetry(side: Any, whole: bool) -> None:
    """Of puzzles and of complete boards; a given more or less, or another board of 9, is another signature."""
    rng, board = np.random.default_rng(side), board_of(side)
    task = Sudoku(side, side=side)
    for index in range(10):
        puzzle = random_grid(board, rng) if whole else task.example("train", 0, index).input_ids
        own = signature(board, puzzle)
        assert {signature(board, moved(puzzle, side, rng)) for _ in range(10)} == {own}
        fewer = puzzle.copy()
        fewer[np.flatnonzero(puzzle)[0]] = 0
        assert signature(board, fewer) != own
    if side == 9:
        assert (
            signature(board, cells(SOLVED)).hex() == "f6a73a4e07122d7ec88238d763556f10"
        )  # another one would move items between splits
        assert len({signature(board, random_grid(board, rng)) for _ in range(50)}) == 50


def images(puzzle: np.ndarray) -> np.ndarray:
    """A puzzle of 4 x 4 under all 24 * 128 symmetries, (3072, 16)."""
    orders = [[2 * b + r for b, rows in zip(bands, inside, strict=True) for r in rows]
              for bands in itertools.permutations(range(2))
              for inside in itertools.product(itertools.permutations(range(2)), repeat=2)]  # fmt: skip
    square = puzzle.reshape(4, 4)
    turned = [one[rows][:, columns].flatten() for one in (square, square.T) for rows in orders for columns in orders]
    names = np.array([(0, *digits) for digits in itertools.permutations(range(1, 5))])
    return names[:, np.array(turned)].reshape(-1, 16)


def test_no_test_puzzle_is_a_training_puzzle_under_any_symmetry() -> None:
    """Every image of every test puzzle of 8 holes, against thousands of training puzzles; nor of a validation puzzle.
    Test puzzles are no images of each other."""
    task = Sudoku(8, side=4)
    trained = {row.tobytes() for row in task.batch("train", 0, range(3000))[0]}
    count = task.available("test", 0, 40)
    tests = task.batch("test", 0, range(count))[0]
    validation = {row.tobytes() for row in task.batch("validation", 0, range(task.available("validation", 0, 40)))[0]}
    found = [{row.tobytes() for row in images(puzzle)} for puzzle in tests]
    assert count == 40
    assert not any(each & trained or each & validation for each in found)
    assert sum(map(len, found)) == len(set.union(*found))


@pytest.mark.parametrize("holes", [1, 11])
def test_few_puzzles_of_four_are_not_looked_for_without_end(holes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the wait for items that are not there, and the number of those that are: all puzzles that are drawn are
    among those that are counted, and no more are counted than are found."""
    task, rng, drawn = Sudoku(holes, side=4), np.random.default_rng(0), []
    counted = {signature(task.board, puzzle) for puzzle in puzzles_of_four(holes)}
    assert all((puzzle == 0).sum() == holes for puzzle in puzzles_of_four(holes))
    seen = [task.draw(rng, holes) for _ in range(1200)]
    assert {task.canonical(item) for item in seen} <= counted
    split = {task.canonical(item): task.split_of(item) for item in seen}
    there = {held_out: list(split.values()).count(held_out) for held_out in HELD_OUT}
    assert there == {held_out: task.number_of(held_out, holes) for held_out in HELD_OUT}
    real = Sudoku.draw
    monkeypatch.setattr(Sudoku, "draw", lambda *given: drawn.append(1) or real(*given))
    if not there["test"]:
        with pytest.raises(ValueError, match="none of 2048 draws belongs to test"):
            task.available("test", 0, 20)
    else:
        assert task.available("test", 0, 20) == there["test"]
    assert len(drawn) < 4000  # of 32768 in vain before


def test_few_different_puzzles_have_one_signature() -> None:
    """200 puzzles of 4 x 4, of which nearly all that differ under every symmetry have different signatures."""
    task = Sudoku(8, side=4)
    puzzles = task.batch("train", 5, range(200))[0]
    classes = {min(map(bytes, images(puzzle).astype(np.uint8))): signature(task.board, puzzle) for puzzle in puzzles}
    assert len(classes) > 100 and len(set(classes.values())) > 0.95 * len(classes)


def test_on_boards_of_nine_the_solution_decides() -> None:
    """Whatever is blank, and however many: one board has one split, and a test has one puzzle of it."""
    task, rng = Sudoku(30), np.random.default_rng(0)
    item = task.draw(rng, 30)
    few, many = task.finish(rng, item, 30), task.finish(rng, item, 45)
    assert (few[0] != many[0]).any() and task.canonical(few) == task.canonical(many) == task.canonical(item)
    other = np.stack([few[0], moved(item[1], 9, rng)])
    assert task.canonical(other) == task.canonical(item)


def test_any_completion_is_right_and_nothing_else() -> None:
    """Of a puzzle with two solutions both; rows and columns alone are not enough; givens stay."""
    task = Sudoku(8, side=4)
    prompt = "1 2 3 4 3 4 1 2 2 0 4 0 4 0 2 0"
    solutions = all_solutions(np.array(prompt.split(), dtype=int))
    assert len(solutions) == 2 and all(task.check(prompt, " ".join(map(str, each))) for each in solutions)
    latin = "1 2 3 4 2 3 4 1 3 4 1 2 4 1 2 3"
    assert not task.check("0 " * 16, latin)
    assert task.check("0 " * 16, "1 2 3 4 3 4 1 2 2 1 4 3 4 3 2 1")
    assert not task.check("2 " + "0 " * 15, "1 2 3 4 3 4 1 2 2 1 4 3 4 3 2 1")


@pytest.mark.parametrize(
    ("options", "said"),
    [({"side": 5}, "side must be one of 4, 6, 9, not 5"), ({"guesses": [3, 1]}, "name the least and the most"),
     *(({"side": side, "holes": most + 1}, f"use {most} or less") for side, most in MOST_HOLES.items())],
)  # fmt: skip
def test_options_outside_their_limits_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Sudoku(**options)


def test_guesses_that_no_puzzle_needs_are_told() -> None:
    """The rules solve every board of 4: an error that names the remedy, not an endless search."""
    with pytest.raises(ValueError, match=r"no puzzle of 3 holes that needs 2 to 9 guesses was found .* a wider range"):
        Sudoku(3, side=4, guesses=[2, 9]).batch("train", 0, [0])
