"""Rounds: what a decoder gives, and how rows that write at different speeds are handed on one position at a time.

A decoder gives each row some tokens per round (one, or drafts that were accepted, or positions that settled): it is a
generator of `Round`s over the rows that still write. `in_lockstep` keeps what they have written, tells the decoder
which of them go on, and yields a position as soon as every row that still writes has it.

Shapes: B batch, B' rows still writing, k most tokens of a row in this round.
"""

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class NewTokens(tuple[Tensor, Tensor]):
    """What one position of the answer got: a pair, and what else is known of it.

    Attributes:
        tokens: (B,) int64, the first of the pair.
        iterations: (B,) int64 spent on choosing them, the second.
        residuals: (B,), the most that the last of these moved a state of the row, from its prompt on; NaN where a row
            is only filled up. None where nobody asked (`SessionOptions`), or the way of writing does not know.
    """

    residuals: Tensor | None

    def __new__(cls, tokens: Tensor, iterations: Tensor, residuals: Tensor | None = None) -> "NewTokens":
        new = super().__new__(cls, (tokens, iterations))
        new.residuals = residuals
        return new

    @property
    def tokens(self) -> Tensor:
        return self[0]

    @property
    def iterations(self) -> Tensor:
        return self[1]


class Round(NamedTuple):
    """What the rows still writing got: of row b the first counts[b] >= 0 `tokens`, with the iterations spent on each.

    Attributes:
        tokens, iterations: (B', k) int64.
        counts: (B',) int64.
        residuals: (B', k), the most that the last iteration moved a state from the prompt to the one behind each; None
            where nobody asked or knows.
    """

    tokens: Tensor
    counts: Tensor
    iterations: Tensor
    residuals: Tensor | None = None


Rounds = Generator[Round, Tensor | None, None]


def in_lockstep(
    rounds: Rounds, limits: Sequence[int], stop: Tensor, ended: Callable[[int, int], bool] | None = None
) -> Iterator[NewTokens]:
    """Yield position after position, until every row has met a token of `stop` or has as many as its limit.

    Args:
        rounds: yields a Round, and is sent which of its rows go on: ascending places among the B' rows, None for all.
            When none is left it is closed. The first Round is of all B rows and gives each a token or more; what a
            Round gives beyond a stop token or the limit is dropped.
        limits: (B,), most tokens of each row.
        stop: (n,) int64.
        ended: asked about the next token of a row, (row, token), whether the row ends with it for another reason.

    A row that has ended is filled up with its last token, at 0 iterations.
    """
    ends, given = set(stop.tolist()), 0
    new = next(rounds)
    writing = list(range(len(new.tokens)))
    written: list[list[int]] = [[] for _ in writing]
    spent: list[list[int]] = [[] for _ in writing]
    moved: list[list[float]] = [[] for _ in writing]
    while True:
        stays = []
        for place, (row, count) in enumerate(zip(writing, new.counts.tolist(), strict=True)):
            tokens = new.tokens[place, : min(count, limits[row] - len(written[row]))].tolist()
            last = next((at for at, token in enumerate(tokens) if token in ends or (ended and ended(row, token))), None)
            cut = len(tokens) if last is None else last + 1
            written[row] += tokens[:cut]
            spent[row] += new.iterations[place, :cut].tolist()
            moved[row] += [math.nan] * cut if new.residuals is None else new.residuals[place, :cut].tolist()
            if last is None and len(written[row]) < limits[row]:
                stays.append(place)
        keep = None if len(stays) == len(writing) else torch.tensor(stays, device=stop.device)
        writing = [writing[place] for place in stays]
        ready = min((len(written[row]) for row in writing), default=max(map(len, written)))
        for position in range(given, ready):
            column = [tokens[min(position, len(tokens) - 1)] for tokens in written]
            used = [counts[position] if position < len(counts) else 0 for counts in spent]
            pair = torch.tensor(column, device=stop.device), torch.tensor(used, device=stop.device)
            yield NewTokens(*pair, at_position(moved, position))
        given = ready
        if not writing:
            rounds.close()
            return
        new = rounds.send(keep)


def at_position(moved: Sequence[Sequence[float]], position: int) -> Tensor | None:
    """Of all rows what is known at a position, (B,), NaN where a row is shorter; None where nothing is."""
    found = [row[position] if position < len(row) else math.nan for row in moved]
    return None if all(map(math.isnan, found)) else torch.tensor(found)
