"""Mazes against another way to solve them: fill dead ends until none is left, and what remains is the way."""

import itertools

import numpy as np
import pytest

from mull.training.data import IGNORE, Maze


def filled(maze: np.ndarray) -> np.ndarray:
    """The free cells (side, side) that are left when every dead end but start and goal has become a wall."""
    symbols, maze = Maze.symbols, maze.copy()
    while True:
        ends = [
            (r, c)
            for r, c in np.argwhere(maze == symbols.index("."))
            if sum(maze[r + i, c + j] != symbols.index("#") for i, j in ((0, 1), (1, 0), (0, -1), (-1, 0))) <= 1
        ]
        if not ends:
            return maze == symbols.index(".")
        for r, c in ends:
            maze[r, c] = symbols.index("#")


@pytest.mark.parametrize("side", [7, 9, 15, 21])
def test_labels_mark_what_is_left_of_filled_dead_ends(side: int) -> None:
    """Every free cell but start and goal is scored, and the marked ones are the way."""
    task = Maze()
    mazes, labels = task.batch("train", 0, range(10), side)
    assert mazes.shape == (10, side**2) and ((labels != IGNORE) == (mazes == task.symbols.index("."))).all()
    for maze, told in zip(mazes, labels, strict=True):
        assert np.array_equal(filled(maze.reshape(side, side)).flatten(), told == task.symbols.index("o"))


@pytest.mark.parametrize("side", [7, 13])
def test_a_maze_is_a_tree_of_all_its_rooms(side: int) -> None:
    """As many passages as rooms less one, and all dead ends can be filled: no circle, and nothing cut off. Walls are
    around it and between the corners of rooms; start and goal are rooms."""
    rooms = (side // 2) ** 2
    for maze in Maze(side).batch("train", 1, range(20))[0].reshape(-1, side, side):
        free = maze != 0
        assert free[1::2, 1::2].all() and not free[::2, ::2].any() and free.sum() == 2 * rooms - 1
        assert not free[[0, -1]].any() and not free[:, [0, -1]].any()
        assert {*maze[1::2, 1::2].flatten()} <= {1, 2, 3} and (maze == 2).sum() == (maze == 3).sum() == 1
        ended = maze.copy()
        ended[maze == 2] = 1  # without a start nothing but the goal is kept
        assert not filled(ended).any()


def test_turned_mirrored_and_exchanged_mazes_are_one_item() -> None:
    """All sixteen; a moved goal is another item."""
    task, rng = Maze(9), np.random.default_rng(0)
    for _ in range(10):
        item = task.draw(rng, 9)
        maze = item[0].reshape(9, 9)
        swapped = np.array([0, 1, 3, 2, 4], dtype=np.uint8)[maze]
        same = [np.rot90(one, k) for one in (maze, maze.T, swapped, swapped.T) for k in range(4)]
        assert {task.canonical(np.stack([one.flatten(), item[1]])) for one in same} == {task.canonical(item)}
        moved = maze.copy()
        rows, columns = np.nonzero(maze == 1)
        moved[maze == 3], moved[rows[0], columns[0]] = 1, 3
        assert task.canonical(np.stack([moved.flatten(), item[1]])) != task.canonical(item)


def test_the_share_off_the_way_is_the_documented_one() -> None:
    """What the best guess without looking reaches; 1500 mazes of a side agree within 0.02."""
    for side, share in ((7, 0.65), (9, 0.68), (15, 0.73)):
        labels = Maze().batch("train", 3, range(1500), side)[1]
        assert abs((labels[labels != IGNORE] == 1).mean() - share) < 0.02


OPEN = "# # # # # # S . . # # . # . # # . . G # # # # # #"  # a circle: two ways of one length


def test_any_shortest_way_is_right_and_no_other_marks() -> None:
    """Both ways round a circle, but not both at once, nor a detour, nor a part, nor a changed maze."""
    task = Maze()
    right, below = (OPEN.split() for _ in range(2))
    right[7] = right[8] = right[13] = "o"
    below[11] = below[16] = below[17] = "o"
    assert task.check(OPEN, " ".join(right)) and task.check(OPEN, " ".join(below))
    both = [max(one, other) for one, other in zip(right, below, strict=True)]
    assert both.count("o") == 6 and not task.check(OPEN, " ".join(both))
    part = [*right]
    part[8] = "."
    assert not task.check(OPEN, " ".join(part)) and not task.check(OPEN, OPEN)
    scattered = [*part]
    scattered[16] = "o"  # as many marks as the way has
    assert not task.check(OPEN, " ".join(scattered))
    through = [*part]
    through[12] = "o"  # a wall
    assert not task.check(OPEN, " ".join(through))
    long = OPEN.replace("S . .", "S . G").replace(". . G", ". . .")
    detour = long.split()
    for cell in (11, 16, 17, 18, 13):
        detour[cell] = "o"
    assert not task.check(long, " ".join(detour)) and task.check(long, long.replace("S . G", "S o G"))


@pytest.mark.parametrize("place", [0, 2, 10, 24])
def test_a_maze_with_a_hole_in_its_wall_is_refused(place: int) -> None:
    """Walls must be all around; one start, one goal, a way between them, and a square."""
    task, cells = Maze(), OPEN.split()
    cells[place] = "."
    shut = OPEN.split()
    shut[8] = shut[16] = "#"
    for prompt in (" ".join(cells), " ".join(shut), OPEN.replace("G", "S"), OPEN.replace("G", "."), OPEN + " #"):
        with pytest.raises(ValueError, match="not a maze prompt"):
            task.check(prompt, prompt)


@pytest.mark.parametrize("side", [8, 203])
def test_sides_that_cannot_be_drawn_are_refused(side: int) -> None:
    with pytest.raises(ValueError, match=f"a maze of side {side} cannot be drawn: use an odd number from 7 to 201"):
        Maze(side)


def test_start_and_goal_are_anywhere() -> None:
    """All 72 ordered pairs of rooms of side 7 occur; 1500 draws miss one of them in less than 10^7 runs."""
    rng, task = np.random.default_rng(0), Maze(7)
    pairs = {tuple(np.flatnonzero(maze == which)[0] for which in (2, 3)) for maze, _ in
             (task.draw(rng, 7) for _ in range(1500))}  # fmt: skip
    assert len(pairs) == len(list(itertools.permutations(range(9), 2)))
