"""Pools of Sudoku puzzles: some are made once, and every training item is one of them under a random symmetry.

To make a puzzle with one solution takes milliseconds; to see one in another way takes microseconds, and there are more
ways than anybody trains steps: digits can be renamed, bands, stacks, rows within a band and columns within a stack
change places, and a board whose boxes are square can be transposed: 9! x 6^8 x 2 = 1.2 x 10^12 of a board of 9.

A pool is kept in a file of the working directory, and made again where the file is missing or damaged.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

import numpy as np

from mull.checkpoints.replacing import replace_all
from mull.training.data.streams import STREAMS, Stream
from mull.training.data.sudoku_boards import BOXES, Board
from mull.training.data.sudoku_many import AT_ONCE, dug_from, random_grids

CACHE = Path(".cache/mull")  # folder of pools, as of texts
DIGEST = 16  # bytes of the checksum that ends a file
ROUNDS_WITHOUT = 20  # rounds that may go by without a puzzle that is wanted
Wanted = Callable[[np.ndarray], bool]  # of an item (2, C), puzzle and solution


def pool_of(board: Board, count: int, holes: int, key: tuple[object, ...], early: Wanted, late: Wanted) -> np.ndarray:
    """The first `count` puzzles of a stream with their solutions, (count, 2, C) uint8, 0 at the blanks.

    Args:
        board: their geometry.
        count: how many.
        holes: blanks of each.
        key: names the stream: everything that a puzzle depends on.
        early: whether a complete board is wanted, as an item whose puzzle has no blanks yet.
        late: whether an item is wanted.

    Raises:
        ValueError: hardly any puzzle is wanted.
    """
    name = f"sudoku-{blake2b(repr((STREAMS, key)).encode(), digest_size=16).hexdigest()}-{count}"
    shape = (count, 2, board.side**2)
    with suppress(OSError):
        data = (CACHE / name).read_bytes()
        items, digest = data[:-DIGEST], data[-DIGEST:]
        if len(items) == np.prod(shape) and blake2b(items, digest_size=DIGEST).digest() == digest:
            return np.frombuffer(items, dtype=np.uint8).reshape(shape)
    made = new_pool(board, count, holes, Stream("sudoku pool", *key), early, late)
    items = made.tobytes()
    with suppress(OSError):  # then it is made again another time
        replace_all(CACHE, {name: items + blake2b(items, digest_size=DIGEST).digest()})
    return made


def new_pool(board: Board, count: int, holes: int, stream: Stream, early: Wanted, late: Wanted) -> np.ndarray:
    """As `pool_of`, out of rounds of many boards, each round with the random numbers of its own number."""
    found, number, last = np.empty((0, 2, board.side**2), np.uint8), 0, 0
    while len(found) < count:
        if number - last == ROUNDS_WITHOUT:
            raise ValueError(
                f"no puzzle of {holes} holes that is asked for was found on {ROUNDS_WITHOUT * AT_ONCE:,} boards: use "
                "other holes, or a wider range of guesses"
            )
        rng = stream.at(number)
        grids = random_grids(board, AT_ONCE, rng)
        grids = grids[[early(np.stack([grid, grid])) for grid in grids]]
        puzzles, dug = dug_from(board, grids, holes, rng)
        items = np.stack([puzzles, grids], axis=1)[dug]
        wanted = items[np.array([late(item) for item in items], dtype=bool)]
        number += 1
        last = number if len(wanted) else last
        found = np.concatenate([found, wanted])
    return found[:count]


def seen_anew(board: Board, pool: np.ndarray, generators: Iterable[np.random.Generator]) -> np.ndarray:
    """Of each generator an item of a pool (P, 2, C) at random under a random symmetry, (B, 2, C)."""
    side, (height, width) = board.side, BOXES[board.side]
    bands, stacks = side // height, side // width
    drawn = np.stack([rng.random(2 + side + bands + side + stacks + side) for rng in generators])
    base, mirror, *orders = np.split(drawn, np.cumsum([1, 1, side, bands, side, stacks]), axis=1)
    digits, of_bands, of_rows, of_stacks, of_columns = orders
    names = np.concatenate([np.zeros((len(drawn), 1), dtype=np.intp), 1 + digits.argsort(axis=1)], axis=1)
    rows, columns = lines(of_bands, of_rows), lines(of_stacks, of_columns)
    cells = rows[:, :, None] * side + columns[:, None, :]  # the cell that comes to each place, (B, side, side)
    if height == width:
        cells = np.where(mirror[:, :, None] < 0.5, cells.swapaxes(1, 2), cells)
    items = pool[(base[:, 0] * len(pool)).astype(np.intp)]
    moved = np.take_along_axis(items, cells.reshape(len(drawn), 1, -1), axis=2)
    return np.take_along_axis(names[:, None], moved.astype(np.intp), axis=2).astype(np.uint8)


def lines(of_groups: np.ndarray, of_lines: np.ndarray) -> np.ndarray:
    """An order of rows, band by band, (B, side), out of random numbers of bands and of rows; or of columns."""
    count, size = len(of_groups), of_lines.shape[1] // of_groups.shape[1]
    groups = of_groups.argsort(axis=1)
    inside = of_lines.reshape(count, -1, size).argsort(axis=2)
    return (groups[:, :, None] * size + inside).reshape(count, -1)
