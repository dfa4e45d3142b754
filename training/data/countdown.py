"""Countdown: reach a target from a few numbers by + - * and exact division: "8 3 25 2 -> 42 : 8 * 2 = 16 , ...".

A search problem with many right answers (Gandhi et al., arXiv 2404.03683), and checked as one: whatever derivation
takes each number at most once and ends at the target is right. A model is trained on one, the derivation that the item
was made by, which uses all numbers.
"""

from collections import Counter
from itertools import combinations
from typing import ClassVar

import numpy as np

from mull.training.data.task import END, IGNORE, Task

OPERATORS = "+-*/"
MAX_LARGEST = 10_000


class Countdown(Task):
    """The answer is n - 1 steps `a + b = c` with commas between them, then <end>; all of it is scored.

    Difficulty is n, how many numbers there are, 3 to 6. An item is made backwards from nothing: n numbers, of which two
    at random are combined by an operation at random, until one is left, the target, which is none of the numbers: an
    operation first, then a pair that it can be done with. Half of the numbers are at most 10, as products need. Every
    number, in between too, lies between 1 and `largest` and is one symbol. A division by 1 and a product with 1 are not
    drawn. Of a sum and of a product the larger number is written first. T = 7 n - 4.

    The numbers, in whatever order, and the target decide the split: a question of a test was asked in no training item.
    In text, `check` is what counts; accuracy by token, and exact match, count the derivation of the item alone.

    Args:
        numbers: Default difficulty.
        largest: Largest number, 10 to 10,000; it fixes the vocabulary.
    """

    name: ClassVar[str] = "countdown"
    difficulty_name: ClassVar[str] = "numbers"
    purpose: ClassVar[str] = (
        "Reaches a target from a few numbers by sums, differences, products and exact divisions, and writes the steps: "
        "for seeing what iterations do for a search with many right answers."
    )
    min_difficulty: ClassVar[int] = 3
    stop_symbols: ClassVar[tuple[str, ...]] = (END,)

    def __init__(self, numbers: int = 4, largest: int = 99) -> None:
        if not 10 <= largest <= MAX_LARGEST:
            raise ValueError(f"largest is {largest}: it must be between 10 and {MAX_LARGEST:,}")
        self.largest = largest
        self.default_difficulty = numbers
        self.resolve(numbers)

    @property
    def symbols(self) -> tuple[str, ...]:
        return (*map(str, range(self.largest + 1)), *OPERATORS, "=", ",", "->", ":", END)  # a number's id is its value

    def options(self) -> tuple[object, ...]:
        return (self.largest,)

    def resolve(self, difficulty: int | None) -> int:
        numbers = super().resolve(difficulty)
        if numbers > 6:
            raise ValueError(f"{numbers} numbers are too many for the countdown task: use 6 or less")
        return numbers

    def answer_length(self, difficulty: int) -> int:
        return 6 * (difficulty - 1)  # the last comma is <end>

    def draw(self, rng: np.random.Generator, difficulty: int) -> np.ndarray:
        """The numbers, the target, and for each step the two numbers, the operator and the result: one row."""
        while True:
            most = np.where(rng.integers(2, size=difficulty), self.largest, 10)
            numbers = rng.integers(1, most + 1).tolist()
            left, steps = list(numbers), list[int]()
            while len(left) > 1:
                pairs = [sorted(pair, key=left.__getitem__) for pair in combinations(range(len(left)), 2)]
                for operator in rng.permutation(len(OPERATORS)).tolist():
                    made = [(i, j, self.possible(left[j], left[i]).get(operator)) for i, j in pairs]
                    made = [way for way in made if way[2] is not None]
                    if made:
                        break
                i, j, result = made[rng.integers(len(made))]
                assert result is not None
                steps += [left[j], left[i], operator, result]
                left = [*(number for place, number in enumerate(left) if place not in (i, j)), result]
            if left[0] not in numbers:
                return np.array([*numbers, left[0], *steps])

    def possible(self, a: int, b: int) -> dict[int, int]:
        """What may be done with numbers a >= b: results by operator; never empty."""
        found = {0: a + b, 1: a - b}
        if b > 1:
            found |= {2: a * b} | ({3: a // b} if a % b == 0 else {})
        return {operator: result for operator, result in found.items() if 1 <= result <= self.largest}

    def canonical(self, item: np.ndarray) -> bytes:
        count = (len(item) + 3) // 5  # n + 1 + 4 (n - 1) entries
        return np.array([*sorted(item[:count]), item[count]], dtype="<i4").tobytes()

    def lay_out(self, items: np.ndarray, difficulty: int) -> tuple[np.ndarray, np.ndarray]:
        index = self.symbols.index
        arrow, colon, comma, end = index("->"), index(":"), index(","), index(END)
        first = np.ones((len(items), 1), dtype=np.int64)
        question = np.concatenate(
            [items[:, :difficulty], arrow * first, items[:, difficulty : difficulty + 1], colon * first], axis=1
        )
        steps = items[:, difficulty + 1 :].reshape(len(items), difficulty - 1, 4)
        words = np.empty((len(items), difficulty - 1, 6), dtype=np.int64)
        words[..., 0], words[..., 2], words[..., 4] = steps[..., 0], steps[..., 1], steps[..., 3]
        words[..., 1], words[..., 3], words[..., 5] = self.largest + 1 + steps[..., 2], index("="), comma
        answer = words.reshape(len(items), -1)
        answer[:, -1] = end
        input_ids = np.concatenate([question, answer[:, :-1]], axis=1)
        labels = np.full_like(input_ids, IGNORE)
        labels[:, question.shape[1] - 1 :] = answer  # the first number is predicted at ":"
        return input_ids, labels

    def check(self, prompt: str, answer: str) -> bool:
        words = prompt.split()
        known = set(self.symbols[: self.largest + 1])
        if len(words) < 6 or [words[-3], words[-1]] != ["->", ":"] or not known.issuperset([*words[:-3], words[-2]]):
            raise ValueError(
                f"not a countdown prompt: {prompt!r} (expected numbers up to {self.largest} and a target, with blanks "
                "between all symbols: 2 3 4 -> 10 :)"
            )
        left, result = Counter(map(int, words[:-3])), None
        for step in answer.removesuffix(END).split(" , "):
            parts = step.split()
            if len(parts) != 5 or parts[3] != "=" or not known.issuperset([parts[0], parts[2], parts[4]]):
                return False
            a, b, result = int(parts[0]), int(parts[2]), int(parts[4])
            left.subtract((a, b))
            if min(left[a], left[b]) < 0 or not is_right(a, parts[1], b, result):
                return False
            left[result] += 1
        return result == int(words[-2])


def is_right(a: int, operator: str, b: int, result: int) -> bool:
    """Whether a step of a derivation is right; division must be exact."""
    if operator == "/":
        return b != 0 and b * result == a
    return {"+": a + b, "-": a - b, "*": a * b}.get(operator) == result
