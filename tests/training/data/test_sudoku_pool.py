"""Pools of Sudoku puzzles: many boards at once against the plain solver, symmetries, splits, and the file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mull.training.data import IGNORE, Sudoku, sudoku_pool
from mull.training.data.streams import Stream
from mull.training.data.sudoku_boards import MOST_HOLES, Solver, another, board_of, rating, signature
from mull.training.data.sudoku_many import dug_from, random_grids, settle, solvable
from mull.training.data.sudoku_pool import seen_anew

SIDES = (4, 6, 9)
every_side = pytest.mark.parametrize("side", SIDES)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pools are kept below the working directory; these are small, and so are the rounds that they are made in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sudoku_pool, "AT_ONCE", 40)


def candidates_of(puzzles: np.ndarray, side: int) -> np.ndarray:
    """Candidates (C, N) of puzzles (N, C): every digit at a blank."""
    whole = np.uint16((1 << side) - 1)
    return np.where(puzzles == 0, whole, np.uint16(1) << (puzzles.astype(np.uint16) - 1) % 16).T.astype(np.uint16)


@every_side
def test_many_boards_are_solved_as_the_plain_solver_solves_them(side: int) -> None:
    """The same boards have a completion; where the rules end, the same are solved, dead or open; rows are separate."""
    board, rng = board_of(side), np.random.default_rng(side)
    grids = random_grids(board, 60, rng)
    puzzles = np.where(rng.random(grids.shape) < 0.45, grids, 0)
    wrong = rng.random(60) < 0.7  # a digit anywhere, which most often leads nowhere
    puzzles[wrong, rng.integers(side**2, size=60)[wrong]] = rng.integers(1, side + 1, 60)[wrong]
    expected = [next(Solver(board).solutions(puzzle), None) is not None for puzzle in puzzles]
    assert 5 < sum(expected) < 55
    assert solvable(board, candidates_of(puzzles, side)).tolist() == expected
    settled = candidates_of(puzzles, side)
    alive = settle(board, settled)
    for index, puzzle in enumerate(puzzles):
        alone = candidates_of(puzzle[None], side)
        assert settle(board, alone)[0] == alive[index]
        if alive[index]:
            assert np.array_equal(alone[:, 0], settled[:, index])
        if expected[index]:
            solved = bool((settled[:, index] & (settled[:, index] - np.uint16(1)) == 0).all())
            assert solved == (rating(puzzle) == 0)


@every_side
def test_puzzles_dug_from_many_boards_have_one_solution(side: int) -> None:
    """And as many blanks as asked for, on boards that are complete; not one board again and again."""
    board, rng = board_of(side), np.random.default_rng(0)
    grids = random_grids(board, 40, rng)
    assert all(np.array_equal(next(Solver(board).solutions(grid)), grid) for grid in grids)
    puzzles, dug = dug_from(board, grids, MOST_HOLES[side], rng)
    assert dug.mean() > 0.8
    assert ((puzzles == 0).sum(axis=1)[dug] == MOST_HOLES[side]).all()
    assert ((puzzles == 0) | (puzzles == grids)).all()
    assert all(another(board, puzzle, grid) is None for puzzle, grid in zip(puzzles[dug], grids[dug], strict=True))
    assert len(np.unique(grids, axis=0)) > 20


@every_side
def test_items_are_puzzles_of_the_pool_under_symmetries(side: Any) -> None:
    """Each has the signature of one of them, all of which belong to training; all are seen, in ways that differ."""
    holes = {4: 8, 6: 15, 9: 30}[side]
    task = Sudoku(holes, side=side, pool=30)
    puzzles, labels = task.batch("train", 0, range(300))
    grids = np.where(labels == IGNORE, puzzles, labels)
    pool = task.pools[0, holes]
    seen = list(zip(puzzles, grids, strict=True))
    own = [[signature(task.board, part) for part in item] for item in pool]
    found = [[signature(task.board, puzzle), signature(task.board, grid)] for puzzle, grid in seen]
    assert all(pair in own for pair in found) and all(pair in found for pair in own)
    assert all(task.split_of(np.stack([puzzle, grid])) == "train" for puzzle, grid in seen)
    assert (puzzles == 0).sum(axis=1).tolist() == [holes] * 300
    assert len(np.unique(puzzles, axis=0)) > 200
    assert len(np.unique(puzzles == 0, axis=0)) > 100  # not digits alone: the blanks move too


def test_every_symmetry_is_drawn() -> None:
    """Of a complete board whose cells have names: every digit, row, column, and the transpose, at every place."""
    board, stream = board_of(9), Stream("symmetries")
    places = np.arange(81, dtype=np.uint8)
    for values in (places // 9 + 1, places % 9 + 1):  # the number of each cell's row, then of its column
        moved = seen_anew(board, np.stack([values, values])[None], map(stream.at, range(400)))[:, 0].reshape(-1, 9, 9)
        by_row = [tuple(square[:, 0]) for square in moved if (square == square[:, :1]).all()]
        by_column = [tuple(square[0]) for square in moved if (square == square[:1]).all()]
        assert len(by_row) + len(by_column) == 400 and min(len(by_row), len(by_column)) > 150  # some are transposed
        found = {pair for lines in (by_row, by_column) for line in lines for pair in enumerate(line)}
        assert len(found) == 81


def test_an_item_is_a_function_of_seed_and_index() -> None:
    """However it is asked for, and by whichever object; another seed has another pool. Held-out items stay the same."""
    task, again, other = Sudoku(30, pool=4), Sudoku(30, pool=4), Sudoku(30, pool=4)
    together = task.batch("train", 5, range(6))[0]
    assert np.array_equal(again.example("train", 5, 3).input_ids, together[3])
    assert not np.array_equal(np.sort(other.batch("train", 6, range(6))[0]), np.sort(together))
    signatures = [{signature(each.board, item[0]) for item in each.pools[key]}
                  for each, key in ((task, (5, 30)), (other, (6, 30)))]  # fmt: skip
    assert not signatures[0] & signatures[1]
    for split in ("validation", "test"):
        assert np.array_equal(task.batch(split, 0, range(3))[0], Sudoku(30).batch(split, 0, range(3))[0])


def test_a_larger_pool_begins_with_the_smaller_one_and_guesses_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds of boards have numbers, so nothing depends on how many are wanted."""
    monkeypatch.setattr(sudoku_pool, "ROUNDS_WITHOUT", 2)
    small, large = Sudoku(53, guesses=[1, 50], pool=3), Sudoku(53, guesses=[1, 50], pool=12)
    small.prepare(0, [53])
    large.prepare(0, [53])
    assert np.array_equal(small.pools[0, 53], large.pools[0, 53][:3])
    assert all(1 <= rating(puzzle) <= 50 for puzzle in large.pools[0, 53][:, 0])
    with pytest.raises(ValueError, match=r"no puzzle of 20 holes.*wider range"):
        Sudoku(20, guesses=[5, 50], pool=1).prepare(0, [20])


def test_a_pool_is_kept_and_a_damaged_file_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second start takes the file; a byte that changed, or a file cut short, is noticed."""
    first = Sudoku(30, pool=4)
    first.prepare(0, [30])
    (file,) = sudoku_pool.CACHE.iterdir()
    whole = file.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(sudoku_pool, "new_pool", lambda *_: pytest.fail("made again"))
        second = Sudoku(30, pool=4)
        second.prepare(0, [30])
    assert np.array_equal(first.pools[0, 30], second.pools[0, 30])
    for damaged in (whole[:-1], b"", bytes([whole[0] ^ 1]) + whole[1:]):
        file.write_bytes(damaged)
        third = Sudoku(30, pool=4)
        third.prepare(0, [30])
        assert np.array_equal(first.pools[0, 30], third.pools[0, 30])
        assert file.read_bytes() == whole


def test_a_pool_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="pool is 0: it must be 1 or more"):
        Sudoku(30, pool=0)
