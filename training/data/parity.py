"""Running parity: at every position, has the number of ones so far been even or odd?

A chain as long as the row: T bits are T flips one after the other, or log2 T rounds of pairing (Saunshi et al., arXiv
2502.17416, section 4, composition in a group). A layer that looks k places back carries the count that far, so that a
fixed number of such layers answers rows up to a fixed length. (Threshold circuits of constant depth do count
ones.) Prefix sums of Schwarzschild et al. (arXiv 2106.04537) are the same task.

A start symbol stands before the bits, unscored. Without it the task cannot be learned exactly: in a row of ones all
values are equal, so attention returns the same vector at every position whatever its weights, and "1" and "1 1" get
one answer. That alone caps the accuracy at 1 - (1/4 + 1/16 + ...) / length, 0.990 at length 32.
"""

from collections.abc import Iterable
from itertools import product
from typing import ClassVar

import numpy as np

from mull.training.data.task import IGNORE, START, Split, Task


class Parity(Task):
    """Random bits; the answer at every bit is "even" or "odd". Half of all guesses are right.

    Difficulty is the length. In training every bit is scored, and a row can be the beginning of a longer one, so the
    first 8 bits decide the split of a row, and in validation and test the answers from the 8th bit on are scored: no
    training row of any length begins with the bits up to there. Of rows that are shorter than 8 bits the last answer is
    scored; they can only be unseen if no longer ones are trained on.

    Args:
        length: Default difficulty, the number of bits.
    """

    name: ClassVar[str] = "parity"
    purpose: ClassVar[str] = (
        "Says at every bit of a row whether the ones so far have been even or odd: a chain as long as the row, for "
        "seeing accuracy grow with iterations."
    )
    difficulty_name: ClassVar[str] = "length"
    symbols: ClassVar[tuple[str, ...]] = ("0", "1", "even", "odd", START)
    stop_symbols: ClassVar[tuple[str, ...]] = ("even", "odd")  # the answer to a prompt is one symbol
    decided_by: ClassVar[int] = 8

    def __init__(self, length: int = 32) -> None:
        self.default_difficulty = length
        self.resolve(length)

    def draw(self, rng: np.random.Generator, difficulty: int) -> np.ndarray:
        return rng.integers(0, 2, difficulty)

    def number_of(self, split: Split, difficulty: int) -> int:
        beginnings = np.array(list(product((0, 1), repeat=min(difficulty, self.decided_by))))
        return sum(self.split_of(bits) == split for bits in beginnings) * 2 ** max(difficulty - self.decided_by, 0)

    def is_seen(self, difficulty: int, trained: Iterable[int]) -> bool:
        return difficulty < self.decided_by and any(length > difficulty for length in trained)

    def lay_out(self, items: np.ndarray, difficulty: int) -> tuple[np.ndarray, np.ndarray]:  # noqa: ARG002
        start, even = self.symbols.index(START), self.symbols.index("even")
        first = np.ones((len(items), 1), dtype=np.int64)
        parities = even + items.cumsum(axis=1) % 2
        return np.concatenate([start * first, items], axis=1), np.concatenate([IGNORE * first, parities], axis=1)

    def check(self, prompt: str, answer: str) -> bool:
        bits = prompt.split()
        if not bits or not {"0", "1"}.issuperset(bits):
            raise ValueError(f"not a parity prompt: {prompt!r} (expected bits with blanks between them: 1 0 1 1)")
        return answer.split() == ["odd" if bits.count("1") % 2 else "even"]
