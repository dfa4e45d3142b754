"""Lockstep: rows that write at different speeds, handed out position by position.

A row is written until it meets a stop token or has its limit of tokens; then it drops out of those that go on. Position
n is ready when every row that goes on has it. A row that has ended before n repeats its last token there, at 0
iterations.

Shapes: B batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class NewTokens(NamedTuple):
    """What one position of the answer got: `tokens` (B,) int64, and `iterations` (B,) spent on choosing them."""

    tokens: Tensor
    iterations: Tensor


class Lockstep:
    """What B rows have written so far, and which of them go on.

    Args:
        rows: B.
        limit: most tokens of a row.
        stop: tokens that end a row.
    """

    def __init__(self, rows: int, limit: int, stop: Tensor) -> None:
        self.limit, self.stop, self.device = limit, set(stop.tolist()), stop.device
        self.tokens: list[list[int]] = [[] for _ in range(rows)]
        self.iterations: list[list[int]] = [[] for _ in range(rows)]
        self.writing = list(range(rows))  # rows that go on, ascending
        self.given = 0  # positions handed out

    def write(self, tokens: Sequence[Sequence[int]], iterations: Sequence[int], rows: Sequence[int]) -> list[bool]:
        """Append to these rows their next tokens, each at so many iterations; what lies behind a row's end is left out.

        Returns which of the rows go on.
        """
        goes_on = []
        for row, new, used in zip(rows, tokens, iterations, strict=True):
            new = new[: self.limit - len(self.tokens[row])]
            cut = next((place + 1 for place, token in enumerate(new) if token in self.stop), len(new))
            self.tokens[row] += new[:cut]
            self.iterations[row] += [used] * cut
            goes_on.append(self.tokens[row][-1] not in self.stop and len(self.tokens[row]) < self.limit)
        ended = {row for row, on in zip(rows, goes_on, strict=True) if not on}
        if ended:
            self.writing = [row for row in self.writing if row not in ended]
        return goes_on

    def ready(self) -> Iterator[NewTokens]:
        """The positions that are ready and have not been handed out yet."""
        lengths = [len(self.tokens[row]) for row in self.writing]
        ready = min(lengths) if lengths else max(map(len, self.tokens))
        for place in range(self.given, ready):
            self.given = place + 1
            tokens = [row[place] if place < len(row) else row[-1] for row in self.tokens]
            used = [row[place] if place < len(row) else 0 for row in self.iterations]
            yield NewTokens(torch.tensor(tokens, device=self.device), torch.tensor(used, device=self.device))
