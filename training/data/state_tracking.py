"""State tracking: the word problem of a finite group. At every position, what is the product of all elements so far?

Z60 can be tracked by constant-depth circuits with modular counters; A5 and S5 are not solvable groups, and their word
problem is complete for NC1 (Barrington 1989; Merrill, Petty and Sabharwal, arXiv 2404.08819): unless TC0 is NC1, a
transformer of fixed depth must fail beyond some length, and an iterated one needs depth that grows with it. Parity is
the same task over Z2 and has a file of its own.

Elements of A5 and S5 are written as the images of 1 to 5, "23145", and those of Z60 as numbers. A product is read from
left to right: first the permutation that stands first. A start symbol stands before the elements, unscored.
"""

from collections.abc import Iterable
from itertools import permutations
from typing import ClassVar, Literal, get_args

import numpy as np

from mull.training.data.task import IGNORE, START, Task

Group = Literal["Z60", "A5", "S5"]
Letters = Literal["elements", "generators"]


def even(permutation: tuple[int, ...]) -> bool:
    """Whether a permutation has an even number of inversions."""
    return sum(a > b for i, a in enumerate(permutation) for b in permutation[i + 1 :]) % 2 == 0


def group_table(group: Group) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """The names of a group's elements (n), its products (n, n), row first, and its generators (2,)."""
    if group == "Z60":
        numbers = np.arange(60)
        return tuple(map(str, numbers)), (numbers[:, None] + numbers) % 60, np.array([1, 59])
    elements = [p for p in permutations(range(5)) if group == "S5" or even(p)]
    index = {p: i for i, p in enumerate(elements)}
    # first p, then q: i goes to q[p[i]]
    products = np.array([[index[tuple(q[i] for i in p)] for q in elements] for p in elements])
    cycle, other = (1, 2, 3, 4, 0), ((1, 2, 0, 3, 4) if group == "A5" else (1, 0, 2, 3, 4))
    names = tuple("".join(str(i + 1) for i in p) for p in elements)
    return names, products, np.array([index[cycle], index[other]])


class StateTracking(Task):
    """Random elements; the answer at each is the product so far. With all elements one of n guesses is right, n = 60 or
    120; with generators short rows stay near the start, and the best guess is right more often (17 % of the time for
    Z60 at length 8, 11 % at 32; 12 % and 3.6 % for S5): see the column of guesses of an evaluation.

    Difficulty is the length. The first elements decide the split of a row (3 of them, or 8 where only generators
    occur), and in validation and test the answers from there on are scored: no training row begins like that.

    Args:
        length: Default difficulty, the number of elements.
        group: Z60 (addition modulo 60), A5 (even permutations of five things) or S5 (all of them).
        letters: What rows are drawn from: all elements, or two generators of the group (1 and 59; a cycle of five and
            one of three; a cycle of five and a swap), which reach the same states and have a shorter table. Those of
            Z60 are a random walk.
    """

    name: ClassVar[str] = "state_tracking"
    difficulty_name: ClassVar[str] = "length"
    purpose: ClassVar[str] = (
        "Says at every element of a row what the product of all so far is, in a group: a task that, as far as is "
        "believed, no transformer of fixed depth does at every length, for seeing accuracy grow with iterations."
    )

    def __init__(self, length: int = 32, group: Group = "A5", letters: Letters = "elements") -> None:
        for name, value, known in (("group", group, get_args(Group)), ("letters", letters, get_args(Letters))):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, not {value!r}")
        self.group, self.letters = group, letters
        self.names, self.products, generators = group_table(group)
        self.drawn = generators if letters == "generators" else np.arange(len(self.names))
        self.default_difficulty = length
        self.resolve(length)

    @property
    def decided_by(self) -> int:  # type: ignore[override]  # depends on how many beginnings there are
        return 3 if self.letters == "elements" else 8

    @property
    def symbols(self) -> tuple[str, ...]:
        return (*self.names, START)

    @property
    def stop_symbols(self) -> tuple[str, ...]:
        return self.names  # the answer to a prompt is one element

    def options(self) -> tuple[object, ...]:
        return (self.group, self.letters)

    def draw(self, rng: np.random.Generator, difficulty: int) -> np.ndarray:
        return self.drawn[rng.integers(0, len(self.drawn), difficulty)]

    def is_seen(self, difficulty: int, trained: Iterable[int]) -> bool:
        return difficulty < self.decided_by and any(length > difficulty for length in trained)

    def lay_out(self, items: np.ndarray, difficulty: int) -> tuple[np.ndarray, np.ndarray]:  # noqa: ARG002
        first = np.ones((len(items), 1), dtype=np.int64)
        states = items.astype(np.int64)
        for t in range(1, states.shape[1]):
            states[:, t] = self.products[states[:, t - 1], items[:, t]]
        start = self.symbols.index(START)
        return np.concatenate([start * first, items], axis=1), np.concatenate([IGNORE * first, states], axis=1)

    def check(self, prompt: str, answer: str) -> bool:
        known = {name: i for i, name in enumerate(self.names)}
        words = prompt.split()
        if not words or not known.keys() >= set(words):
            raise ValueError(
                f"not a state_tracking prompt: {prompt!r} (expected elements of {self.group} with blanks between them: "
                f"{' '.join(self.names[i] for i in self.drawn[:2])})"
            )
        state = known[words[0]]
        for word in words[1:]:
            state = self.products[state, known[word]]
        return answer.split() == [self.names[state]]
