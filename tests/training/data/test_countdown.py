"""Countdown: derivations worked through as fractions, and questions solved by trying everything."""

import itertools
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from mull.training.data import IGNORE, Countdown


def reachable(numbers: tuple[int, ...], largest: int) -> set[int]:
    """Everything that some of these numbers give, by every derivation that stays between 1 and `largest`."""
    found = set(numbers)
    for (i, a), (j, b) in itertools.permutations(enumerate(numbers), 2):
        rest = tuple(x for k, x in enumerate(numbers) if k not in (i, j))
        for value in (Fraction(a + b), Fraction(a - b), Fraction(a * b), Fraction(a, b)):
            if value.denominator == 1 and 1 <= value <= largest:
                found |= reachable((*rest, int(value)), largest)
    return found


@pytest.mark.parametrize("numbers", [3, 4, 5, 6])
def test_labels_derive_the_target_from_all_numbers(numbers: int) -> None:
    """Step by step: each takes two numbers that are there, is exact, and the last one is the target; T is 7 n - 4."""
    task = Countdown()
    inputs, labels = task.batch("train", 0, range(50), numbers)
    assert inputs.shape[1] == 7 * numbers - 4 and ((labels != IGNORE).sum(axis=1) == 6 * (numbers - 1)).all()
    for index in range(50):
        prompt, answer = task.prompt("train", 0, index, numbers)
        given, target = prompt.removesuffix(" :").split(" -> ")
        left = Counter(map(int, given.split()))
        assert left.total() == numbers and int(target) not in left
        for step in answer.split(" , "):
            a, operator, b, _, result = step.split()
            value = {"+": Fraction(a) + int(b), "-": Fraction(a) - int(b), "*": Fraction(a) * int(b),
                     "/": Fraction(a) / int(b)}[operator]  # fmt: skip
            assert value == int(result) and int(a) >= int(b) and 1 <= int(result) <= 99
            assert operator in "+-" or int(b) > 1
            left.subtract((int(a), int(b)))
            left[int(result)] += 1
        assert +left == Counter([int(target)]) and min(left.values()) == 0
        assert task.check(prompt, answer) and task.check(prompt, answer + " <end>")


def test_questions_have_answers() -> None:
    """By trying everything; and what nothing reaches is no question."""
    task, rng = Countdown(3, largest=20), np.random.default_rng(0)
    asked = {tuple(task.draw(rng, 3)[:4].tolist()) for _ in range(300)}
    assert len(asked) > 250
    assert all(target in reachable(numbers, 20) for *numbers, target in asked for numbers in [tuple(numbers)])


def test_all_operations_are_drawn() -> None:
    """4000 steps: each operator makes more than a tenth of them."""
    task = Countdown(5)
    labels = task.batch("train", 0, range(1000))[1]
    counts = [int((labels == task.symbols.index(operator)).sum()) for operator in "+-*/"]
    assert sum(counts) == 4000 and min(counts) > 400


def test_order_and_derivation_make_no_other_item() -> None:
    """The same numbers in another order, derived in another way, are the same question; another target is another."""
    task = Countdown(3)
    one = np.array([2, 3, 4, 24, 3, 2, 2, 6, 6, 4, 2, 24])  # 3 * 2 = 6, 6 * 4 = 24
    other = np.array([4, 2, 3, 24, 4, 2, 2, 8, 8, 3, 2, 24])  # 4 * 2 = 8, 8 * 3 = 24
    third = np.array([4, 2, 3, 20, 3, 2, 0, 5, 5, 4, 2, 20])
    assert task.canonical(one) == task.canonical(other) != task.canonical(third)
    assert task.split_of(one) == task.split_of(other)


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("8 * 3 = 24 , 24 + 25 = 49 , 49 - 2 = 47", True),
        ("25 - 2 = 23 , 8 * 3 = 24 , 23 + 24 = 47", True),  # in another order, the smaller number first
        ("8 * 3 = 24 , 25 - 2 = 23 , 24 + 23 = 47 <end>", True),
        ("8 * 3 = 24 ,\n24 +\t25 = 49 ,\n\n49 - 2 = 47\n", True),  # a step a line
        ("8 * 3 = 24 , 25 - 2 = 23", False),  # not there yet
        ("8 * 3 = 24 , 24 + 25 = 49", False),
        ("25 + 25 = 50 , 50 - 3 = 47", False),  # one number twice
        ("8 * 3 = 24 , 24 - 2 = 22 , 22 + 25 = 46", False),  # a wrong sum
        ("8 * 3 = 24 , 24 + 25 = 49 , 49 - 2 = 47 , 8 - 3 = 5", False),  # past the target, with what is gone
        ("22 + 25 = 47", False),  # a number that is not there
        ("25 + 22 47", False),
        ("", False),
        ("47", False),
        ("8 ^ 3 = 24 , 24 + 25 = 49 , 49 - 2 = 47", False),
        ("8 * 3 = 24 , , 24 + 25 = 49 , 49 - 2 = 47", False),
    ],
)
def test_any_derivation_that_keeps_the_rules_is_right(answer: str, right: bool) -> None:
    """Each number at most once, results as often as they were made, and the target at the end."""
    assert Countdown().check("8 3 25 2 -> 47 :", answer) == right


def test_numbers_may_be_left_over_and_divisions_must_be_exact() -> None:
    """Not all numbers are needed; 7 / 2 is no 3, and nothing is divided by 0; a result may be taken once."""
    task = Countdown()
    assert task.check("6 3 50 -> 2 :", "6 / 3 = 2") and task.check("6 6 5 -> 1 :", "6 / 6 = 1")
    assert not task.check("7 2 50 -> 3 :", "7 / 2 = 3")
    assert not task.check("5 5 3 -> 0 :", "5 - 5 = 0 , 3 / 0 = 0")
    assert not task.check("2 3 9 -> 10 :", "2 + 3 = 5 , 5 + 5 = 10")
    assert task.check("5 5 5 -> 10 :", "5 + 5 = 10") and not task.check("5 4 5 -> 9 :", "5 + 4 = 9 , 4 + 5 = 9")


@pytest.mark.parametrize("prompt", ["8 3 -> 5 :", "8 3 2 5 :", "8 3 2 -> 5", "8 3 200 -> 5 :", "8 3 x -> 5 :"])
def test_what_is_no_question_is_refused(prompt: str) -> None:
    with pytest.raises(ValueError, match="not a countdown prompt"):
        Countdown().check(prompt, "8 - 3 = 5")


def test_options_outside_their_limits_are_refused() -> None:
    with pytest.raises(ValueError, match="7 numbers are too many for the countdown task: use 6 or less"):
        Countdown(7)
    for largest in (9, 10_001):
        with pytest.raises(ValueError, match=f"largest is {largest}: it must be between 10 and 10,000"):
            Countdown(largest=largest)
