"""Addition of n numbers of k digits: "1 2 + 0 7 + 9 3 = 2 1 1 <end>".

n-ary addition as in Saunshi et al., arXiv 2502.17416, table 1: depth, looped or not, solves it and one layer does not.
The question is written as people write it. The answer comes with its least significant digit FIRST (12 + 07 + 93 =
112, written 2 1 1): then each digit needs one column of the question and the carry so far, while the leading digit
of a left-to-right sum needs all of them at once (Lee et al., arXiv 2307.03381, "reversed"). Answers are padded with
zeros to the width of the largest possible sum.
"""

from typing import ClassVar

import numpy as np

from mull.training.data.task import END, IGNORE, Task


class Addition(Task):
    """Sums of numbers of a fixed width. The answer's digits and <end> are scored.

    Difficulty is the number of summands. The same summands in another order are the same question, and belong to the
    same split.

    Args:
        numbers: Default difficulty.
        digits: Digits of each summand, 1 to 15.
        leading: The answer begins with its leading digit, which depends on all carries. The questions are the same.
    """

    name: ClassVar[str] = "addition"
    purpose: ClassVar[str] = (
        "Adds numbers that are written digit by digit, and writes the sum from its last digit on: for seeing how many "
        "iterations carries and columns take."
    )
    difficulty_name: ClassVar[str] = "numbers"
    min_difficulty: ClassVar[int] = 2
    symbols: ClassVar[tuple[str, ...]] = (*"0123456789", "+", "=", END)  # a digit's id is its value
    stop_symbols: ClassVar[tuple[str, ...]] = (END,)

    def __init__(self, numbers: int = 3, digits: int = 2, leading: bool = False) -> None:
        if not 1 <= digits <= 15:  # sums of more digits could leave int64
            raise ValueError(f"digits is {digits}: it must be between 1 and 15")
        self.digits, self.leading = digits, leading
        self.default_difficulty = numbers
        self.resolve(numbers)

    def options(self) -> tuple[object, ...]:
        return (self.digits,)

    def width(self, numbers: int) -> int:
        """The number of digits of an answer, which is that of the largest sum."""
        return len(str(numbers * (10**self.digits - 1)))

    def answer_length(self, difficulty: int) -> int:
        return self.width(difficulty) + 1  # and <end>

    def draw(self, rng: np.random.Generator, difficulty: int) -> np.ndarray:
        return rng.integers(0, 10**self.digits, difficulty)

    def canonical(self, item: np.ndarray) -> bytes:
        return np.sort(item).astype("<i8").tobytes()

    def lay_out(self, items: np.ndarray, difficulty: int) -> tuple[np.ndarray, np.ndarray]:
        """T = numbers * (digits + 1) + width: the question, then the answer, whose <end> is a label only."""
        plus, equals, end = (self.symbols.index(symbol) for symbol in ("+", "=", END))
        question = np.full((*items.shape, self.digits + 1), plus, dtype=np.int64)  # (B, numbers, digits + sign)
        question[:, :, :-1] = digits_of(items, self.digits)[:, :, ::-1]
        question = question.reshape(len(items), -1)
        question[:, -1] = equals
        answer = digits_of(items.sum(axis=1), self.width(difficulty))[:, :: -1 if self.leading else 1]
        input_ids = np.concatenate([question, answer], axis=1)
        labels = np.full_like(input_ids, IGNORE)
        labels[:, question.shape[1] - 1 : -1] = answer  # the first digit is predicted at "="
        labels[:, -1] = end
        return input_ids, labels

    def check(self, prompt: str, answer: str) -> bool:
        question, equals, rest = prompt.partition("=")
        numbers = [summand.split() for summand in question.split("+")]
        shaped = all(len(number) == self.digits and set(number) <= set("0123456789") for number in numbers)
        if not equals or rest.strip() or not shaped or len(numbers) < 2:
            raise ValueError(
                f"not an addition prompt: {prompt!r} (expected numbers of {self.digits} digits: "
                f"{' + '.join([' '.join('7' * self.digits)] * 2)} =)"
            )
        total = str(sum(int("".join(number)) for number in numbers))
        written = list(total.zfill(self.width(len(numbers))))
        return answer.removesuffix(END).split() == (written if self.leading else written[::-1])


def digits_of(values: np.ndarray, width: int) -> np.ndarray:
    """The decimal digits (..., width) of integers (...), the least significant first."""
    return values[..., None] // 10 ** np.arange(width) % 10
