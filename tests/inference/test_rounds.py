"""The bookkeeping of rows at different speeds, on a scripted decoder: who goes on, and when a position is handed on."""

import torch
from torch import Tensor

from mull.inference.rounds import Round, Rounds, in_lockstep

STOP = torch.tensor([9])


def script(rounds: list[list[list[int]]], heard: list[list[int] | None], closed: list[bool]) -> Rounds:
    """Yields these tokens by round and row, each at 10 iterations and its own value, padded with a stop token."""
    try:
        for rows in rounds:
            width = max(map(len, rows))
            tokens = torch.tensor([row + [9] * (width - len(row)) for row in rows]).view(len(rows), width)
            keep: Tensor | None = yield Round(tokens, torch.tensor([len(row) for row in rows]), tokens + 10)
            heard.append(None if keep is None else keep.tolist())
    finally:
        closed.append(True)


def test_positions_come_when_every_writing_row_has_them() -> None:
    """Row 1 is ahead and waits; row 2 gets nothing for a round; row 1 stops, row 0 reaches the limit, row 2 last."""
    heard: list[list[int] | None] = []
    closed: list[bool] = []
    rounds = [
        [[1], [1], [1]],
        [[2], [2, 3], []],
        [[3, 4, 5], [9, 7], [2]],  # row 1 stops, and what comes after is dropped; the limit of 4 cuts row 0
        [[3]],
        [[4, 5]],
    ]
    stream = in_lockstep(script(rounds, heard, closed), [4, 4, 4], STOP)
    seen = [(next(stream), len(heard)) for _ in range(4)]
    assert [position.tokens.tolist() for position, _ in seen] == [[1, 1, 1], [2, 2, 2], [3, 3, 3], [4, 9, 4]]
    assert [position.iterations.tolist() for position, _ in seen][-1] == [14, 19, 14]
    assert [after for _, after in seen] == [0, 2, 3, 4], "a position came later than it could, or sooner"
    assert not closed
    assert list(stream) == []
    assert heard == [None, None, [2], None] and closed


def test_rows_that_ended_are_filled_up_at_no_iterations() -> None:
    positions = list(in_lockstep(script([[[9], [1]], [[2, 3]]], [], []), [3, 3], STOP))
    assert [position.tokens.tolist() for position in positions] == [[9, 1], [9, 2], [9, 3]]
    assert [position.iterations.tolist() for position in positions] == [[19, 11], [0, 12], [0, 13]]


def test_nothing_is_asked_for_when_nobody_goes_on() -> None:
    heard: list[list[int] | None] = []
    assert len(list(in_lockstep(script([[[9], [9]], [[1], [1]]], heard, []), [5, 5], STOP))) == 1
    assert len(list(in_lockstep(script([[[1], [2]], [[1], [1]]], heard, []), [1, 1], STOP))) == 1
    assert not heard
