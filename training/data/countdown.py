"""Countdown: reach a target from a few numbers by + - * and exact division: "8 3 25 2 -> 42 : 8 * 2 = 16 , ...".

A search problem with many right answers (Gandhi et al., arXiv 2404.03683), and checked as one: whatever derivation
takes each number at most once and ends at the target is right. A model is trained on one, the derivation that the item
was made by, which uses all numbers.
"""

from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from itertools import combinations
from typing import ClassVar

import numpy as np

from mull.training.data.task import END, IGNORE
from mull.training.data.traced import Lengths, TracedTask
from mull.training.data.traces import Derivation, Draws, Step, Traces

OPERATORS = "+-*/"
MAX_LARGEST = 10_000


class Countdown(TracedTask):
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
        styles: How traces are written, by weight, as in {"direct": 1, "search": 2} (traces.py); None writes the answer
            alone, which is what `direct` is. A step in full is "8 * 2 = 16", and its result "16".
        traces: What goes astray in them; None means the usual shares.
    """

    name: ClassVar[str] = "countdown"
    difficulty_name: ClassVar[str] = "numbers"
    purpose: ClassVar[str] = (
        "Reaches a target from a few numbers by sums, differences, products and exact divisions, and writes the steps: "
        "for seeing what iterations do for a search with many right answers."
    )
    min_difficulty: ClassVar[int] = 3
    own_stop_symbols: ClassVar[tuple[str, ...]] = (END,)

    def __init__(
        self,
        numbers: int = 4,
        largest: int = 99,
        styles: dict[str, float] | None = None,
        traces: Traces | None = None,
    ) -> None:
        if not 10 <= largest <= MAX_LARGEST:
            raise ValueError(f"largest is {largest}: it must be between 10 and {MAX_LARGEST:,}")
        self.largest = largest
        self.default_difficulty = numbers
        self.trace(styles, traces)
        self.resolve(numbers)

    @property
    def own_symbols(self) -> tuple[str, ...]:
        return (*map(str, range(self.largest + 1)), *OPERATORS, "=", ",", "->", ":", END)  # a number's id is its value

    def options(self) -> tuple[object, ...]:
        return (self.largest,)

    def resolve(self, difficulty: int | None) -> int:
        numbers = super().resolve(difficulty)
        if numbers > 6:
            raise ValueError(f"{numbers} numbers are too many for the countdown task: use 6 or less")
        return numbers

    def own_answer_length(self, difficulty: int) -> int:
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

    def lay_out_plainly(self, items: np.ndarray, difficulty: int) -> tuple[np.ndarray, np.ndarray]:
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

    def judge(self, question: str, answer: str) -> bool:
        numbers, target = self.asked(question)
        left, result = Counter(numbers), None
        for step in " ".join(answer.removesuffix(END).split()).split(" , "):  # any white space is one blank
            result = self.take(left, step.split())
            if result is None:
                return False
        return result == target

    def asked(self, question: str) -> tuple[list[int], int]:
        """The numbers and the target of a question. Raises ValueError for a text that is none."""
        words = question.split()
        known = set(self.symbols[: self.largest + 1])
        if len(words) < 6 or [words[-3], words[-1]] != ["->", ":"] or not known.issuperset([*words[:-3], words[-2]]):
            raise ValueError(
                f"not a countdown prompt: {question!r} (expected numbers up to {self.largest} and a target, with "
                "blanks between all symbols: 2 3 4 -> 10 :)"
            )
        return [int(word) for word in words[:-3]], int(words[-2])

    def take(self, left: Counter[int], step: list[str]) -> int | None:
        """Do a step with the numbers that are left; its result, or None where it is wrong or cannot be done."""
        if len(step) != 5 or step[3] != "=" or not set(self.symbols[: self.largest + 1]).issuperset(step[::2]):
            return None
        a, b, result = int(step[0]), int(step[2]), int(step[4])
        left.subtract((a, b))
        if min(left[a], left[b]) < 0 or not is_right(a, step[1], b, result):
            return None
        left[result] += 1
        return result

    # Traces ---------------------------------------------------------------------------------------------------------

    def lengths(self, difficulty: int) -> Lengths:
        steps = difficulty - 1
        return Lengths(difficulty + 3, (5,) * steps, 5, (1,) * steps, 6 * steps - 1)

    def derivations(self, items: np.ndarray, difficulty: int) -> list[Derivation]:
        return [CountdownDerivation(self, item, difficulty) for item in items.tolist()]

    def follower(self, question: str) -> Callable[[list[list[str]]], bool]:
        """The steps must be right, each with numbers that are left then; and their end must be the target, or the
        target must be within reach of what is left. Of results alone, some steps must have them."""
        numbers, target = self.asked(question)

        def follows(written: list[list[str]]) -> bool:
            states = {tuple(sorted(numbers))}
            for step in written:
                if len(step) == 1:
                    states = {left for state in states for left in self.leaving(state, step[0])}
                    continue
                after = set[tuple[int, ...]]()
                for state in states:
                    left = Counter(state)
                    if self.take(left, step) is not None:
                        after.add(tuple(sorted(left.elements())))
                states = after
            if states and written and written[-1][-1] == str(target):
                return True
            return any(target in within_reach(state, self.largest) for state in states)

        return follows

    def leaving(self, numbers: tuple[int, ...], result: str) -> list[tuple[int, ...]]:
        """What is left of numbers, ascending, by every step with this result."""
        return [after for _, _, _, made, after in moves(numbers, self.largest) if str(made) == result]


class CountdownDerivation(Derivation):
    """The steps that an item was made by; wrong ones are wrong sums, or right ones after which no way leads to the
    target.

    Args:
        task: the task.
        item: the numbers, the target, and for each step the two numbers, the operator and the result.
        count: how many numbers there are.
    """

    def __init__(self, task: Countdown, item: list[int], count: int) -> None:
        self.task, self.numbers, self.target = task, item[:count], item[count]
        self.moves = [item[i : i + 4] for i in range(count + 1, len(item), 4)]
        self.equals = task.largest + 1 + len(OPERATORS)
        self.steps = [self.step(*move) for move in self.moves]
        self.answer = self.steps[0].full + [word for step in self.steps[1:] for word in (self.equals + 1, *step.full)]

    def step(self, a: int, b: int, operator: int, result: int) -> Step:
        """A step in words; the token of a number is the number."""
        return Step([a, self.task.largest + 1 + operator, b, self.equals, result], [result])

    def astray(self, place: int, most: int, draws: Draws) -> list[Step]:
        largest, numbers = self.task.largest, list(self.numbers)
        for a, b, _, result in self.moves[:place]:
            numbers.remove(a)
            numbers.remove(b)
            numbers.append(result)
        state, target = tuple(sorted(numbers)), self.target
        dead = dead_ends(state, target, largest) if draws.chance(0.75) else ()
        if dead:
            a, b, operator, result, state = dead[draws.below(len(dead))]
        else:  # a wrong sum
            possible = moves(state, largest)
            a, b, operator, right, _ = possible[draws.below(len(possible))]
            result = (right + 1 + draws.below(largest)) % (largest + 1)
            rest = list(state)
            rest.remove(a)
            rest.remove(b)
            state = tuple(sorted((*rest, result)))
        gone = [self.step(a, b, operator, result)]
        while len(gone) < most and len(state) > 1:
            possible = moves(state, largest)
            a, b, operator, result, state = possible[draws.below(len(possible))]
            gone.append(self.step(a, b, operator, result))
        return gone


Move = tuple[int, int, int, int, tuple[int, ...]]  # a, b, operator, result, and the numbers left, ascending


@lru_cache(maxsize=1 << 16)
def moves(numbers: tuple[int, ...], largest: int) -> tuple[Move, ...]:
    """All that may be done with numbers, ascending, the larger written first but where the checker allows the other."""
    found = dict[tuple[int, int, int], Move]()
    for i, j in combinations(range(len(numbers)), 2):
        b, a = numbers[i], numbers[j]
        rest = numbers[:i] + numbers[i + 1 : j] + numbers[j + 1 :]
        results = [(a, b, 0, a + b), (a, b, 1, a - b), (a, b, 2, a * b)]
        results += [(a, b, 3, a // b)] if b and a % b == 0 else []
        results += [(b, a, 3, 0)] if a and b == 0 else []
        for first, second, operator, result in results:
            if result <= largest:
                left = tuple(sorted((*rest, result)))
                found[first, second, operator] = (first, second, operator, result, left)
    return tuple(found.values())


@lru_cache(maxsize=1 << 18)
def within_reach(numbers: tuple[int, ...], largest: int) -> frozenset[int]:
    """All results that some steps with these numbers, ascending, end at; not all of them need be used."""
    found = set[int]()
    for _, _, _, result, left in moves(numbers, largest):
        found.add(result)
        found |= within_reach(left, largest)
    return frozenset(found)


@lru_cache(maxsize=1 << 16)
def dead_ends(numbers: tuple[int, ...], target: int, largest: int) -> tuple[Move, ...]:
    """The right steps after which the target is out of reach, and is not what they end at."""
    return tuple(
        move for move in moves(numbers, largest) if move[3] != target and target not in within_reach(move[4], largest)
    )


def is_right(a: int, operator: str, b: int, result: int) -> bool:
    """Whether a step of a derivation is right; division must be exact."""
    if operator == "/":
        return b != 0 and b * result == a
    return {"+": a + b, "-": a - b, "*": a * b}.get(operator) == result
