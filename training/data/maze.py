"""Mazes: mark the one way from the start to the goal.

A square of cells, each a wall or free, read cell by cell in reading order. Every free cell is answered where it stands,
by a model whose tokens see the whole maze (`causal: false`): on the way, or off it. Mazes are spanning trees of their
rooms, which stand at odd places, so there is one way between any two cells; each dead end that is filled can make
another, which is what a model iterates (Schwarzschild et al., arXiv 2106.04537, train on small mazes and test on large
ones with more iterations).
"""

from typing import ClassVar

import numpy as np

from mull.training.data.task import IGNORE, Task

WALL, FREE, START, GOAL, WAY = range(5)
MAX_SIDE = 201


class Maze(Task):
    """ "#" is a wall, "." a free cell, "S" the start, "G" the goal; the answer has "o" on the way. T = side^2.

    Difficulty is the side, an odd number. Mazes are drawn by walking at random into rooms where nobody has been, and
    back where there are none, which makes long ways; start and goal are two rooms at random. All free cells but start
    and goal are scored. The guess that all of them are off the way is right 0.65, 0.68, 0.73, 0.76, 0.79 of the time at
    sides 7, 9, 15, 21, 31, so look at whole mazes (exact_match), or compare accuracy with these.

    Turned and mirrored mazes, and those with start and goal exchanged, belong to one split, and a test has one of them.
    Side 7 has few that differ, 23 for a test; from side 9 on there are as many as anybody asks for.

    Args:
        side: Default difficulty, the cells of a row, walls around included: 7, 9, 11, ...
    """

    name: ClassVar[str] = "maze"
    difficulty_name: ClassVar[str] = "side"
    purpose: ClassVar[str] = (
        "Marks the one way through a maze, every cell where it stands: for seeing how many iterations larger mazes "
        "take."
    )
    min_difficulty: ClassVar[int] = 7  # there are four different mazes of side 5, which cannot be shared out
    symbols: ClassVar[tuple[str, ...]] = ("#", ".", "S", "G", "o")
    stop_symbols: ClassVar[tuple[str, ...]] = ()  # nothing is written behind the maze
    in_place: ClassVar[bool] = True

    def __init__(self, side: int = 11) -> None:
        self.default_difficulty = side
        self.resolve(side)

    def answer_length(self, difficulty: int) -> int:
        return difficulty**2

    def resolve(self, difficulty: int | None) -> int:
        side = super().resolve(difficulty)
        if side % 2 == 0 or side > MAX_SIDE:
            raise ValueError(f"a maze of side {side} cannot be drawn: use an odd number from 7 to {MAX_SIDE}")
        return side

    def draw(self, rng: np.random.Generator, difficulty: int) -> np.ndarray:
        """The maze and the cells of its way, (2, side^2)."""
        side, across = difficulty, difficulty // 2  # rooms in a row
        turns = rng.permuted(np.tile(np.array([-1, 1, -side, side]), (across**2, 1)), axis=1).tolist()
        first = int(rng.integers(across**2))
        start, goal = rng.choice(across**2, 2, replace=False).tolist()
        cells = [WALL] * side**2

        def cell_of(room: int) -> int:
            return (1 + 2 * (room // across)) * side + 1 + 2 * (room % across)

        inside = {cell_of(room): turns[room] for room in range(across**2)}
        trail = [cell_of(first)]
        cells[trail[0]] = FREE
        while trail:
            here = trail[-1]
            while inside[here]:
                turn = inside[here].pop()
                there = here + 2 * turn
                if there in inside and cells[there] == WALL and (abs(turn) == side or there // side == here // side):
                    cells[here + turn] = cells[there] = FREE
                    trail.append(there)
                    break
            else:
                trail.pop()
        cells[cell_of(start)], cells[cell_of(goal)] = START, GOAL
        way = shortest(cells, side)
        assert way is not None
        marked = np.zeros(side**2, dtype=np.uint8)
        marked[way] = 1
        return np.stack([np.array(cells, dtype=np.uint8), marked])

    def canonical(self, item: np.ndarray) -> bytes:
        side = round(item.shape[1] ** 0.5)
        maze = item[0].reshape(side, side)
        exchanged = np.where(maze == START, GOAL, np.where(maze == GOAL, START, maze)).astype(np.uint8)
        turned = [np.rot90(each, quarter) for each in (maze, exchanged) for quarter in range(4)]
        return min(each.tobytes() for one in turned for each in (one, one.T))

    def lay_out(self, items: np.ndarray, difficulty: int) -> tuple[np.ndarray, np.ndarray]:  # noqa: ARG002
        mazes, ways = items[:, 0].astype(np.int64), items[:, 1]
        return mazes, np.where(mazes == FREE, np.where(ways == 1, WAY, FREE), IGNORE)

    def check(self, prompt: str, answer: str) -> bool:
        words = prompt.split()
        side = round(len(words) ** 0.5)
        cells = [self.symbols.index(word) for word in words if word in self.symbols[:WAY]]
        whole = len(cells) == len(words) == side**2 and cells.count(START) == cells.count(GOAL) == 1
        around = [*cells[:side], *cells[-side:], *cells[::side], *cells[side - 1 :: side]] if whole else []
        way = shortest(cells, side) if whole and set(around) == {WALL} else None
        if way is None:
            raise ValueError(
                f"not a maze prompt: {prompt!r} (expected the cells of a square, row by row with blanks between them: "
                "# for a wall, also all around, . for a free cell, one S and one G with a way between them)"
            )
        answered = answer.split()
        if len(answered) != len(words):
            return False
        wrong = [own for asked, own in zip(words, answered, strict=True) if own != asked and (asked, own) != (".", "o")]
        marked = [WALL if own == "." else cell for cell, own in zip(cells, answered, strict=True)]
        # as many cells as the shortest way has, and a way over them
        return not wrong and answered.count("o") == len(way) and shortest(marked, side) is not None


def shortest(cells: list[int], side: int) -> list[int] | None:
    """The cells of a shortest way between start and goal, without these; None if there is no way. Walls are around."""
    start, goal = cells.index(START), cells.index(GOAL)
    before, front = {start: start}, [start]
    while front and goal not in before:
        reached = []
        for here in front:
            for there in (here - 1, here + 1, here - side, here + side):
                if cells[there] != WALL and there not in before:
                    before[there] = here
                    reached.append(there)
        front = reached
    if goal not in before:
        return None
    way = [before[goal]]
    while way[-1] != start:
        way.append(before[way[-1]])
    return way[:-1]
