"""Addition against Python's own arithmetic on the text of the items."""

import numpy as np
import pytest

from mull.training.data import IGNORE, Addition


@pytest.mark.parametrize(("numbers", "digits"), [(2, 1), (3, 2), (12, 3)])
def test_answers_are_sums_least_significant_first(numbers: int, digits: int) -> None:
    """Read as text, the question's sum is the answer reversed; all items of one difficulty have one length."""
    task = Addition(digits=digits)
    width = len(str(numbers * (10**digits - 1)))
    for index in range(20):
        prompt, answer = task.prompt("train", 0, index, difficulty=numbers)
        summands = [int(summand.replace(" ", "")) for summand in prompt.removesuffix("=").split("+")]
        assert len(summands) == numbers
        assert int("".join(reversed(answer.split()))) == sum(summands)
        input_ids, labels = task.example("train", 0, index, difficulty=numbers)
        assert len(input_ids) == numbers * (digits + 1) + width
        assert [task.symbols[i] for i in labels[labels != IGNORE]] == [*answer.split(), "<end>"]


def test_a_leading_digit_may_come_first() -> None:
    """The same questions with the answers turned round, as the judge wants them; 315 + 120 + 045 + 824 = 1304."""
    task, other = Addition(digits=3, leading=True), Addition(digits=3)
    for index in range(10):
        prompt, answer = task.prompt("test", 0, index, difficulty=4)
        again, turned = other.prompt("test", 0, index, difficulty=4)
        assert prompt == again and answer == turned[::-1] and task.check(prompt, answer)
        assert task.check(prompt, turned) == (answer == turned)
    assert task.check("3 1 5 + 1 2 0 + 0 4 5 + 8 2 4 =", "1 3 0 4 <end>")


def test_the_documented_example() -> None:
    """12 + 07 + 93 = 112, written from the right; <end> may be left out."""
    task = Addition()
    assert task.check("1 2 + 0 7 + 9 3 =", "2 1 1") and task.check("1 2 + 0 7 + 9 3 =", "2 1 1 <end>")
    assert not task.check("1 2 + 0 7 + 9 3 =", "1 1 2")


@pytest.mark.parametrize("prompt", ["1 2 + 7 =", "1 2 =", "1 2 + 0 7", "1 2 + 0 7 = 9", "1 2 + 0 x =", "12 + 07 ="])
def test_malformed_questions_are_refused(prompt: str) -> None:
    """Numbers of other widths, a lone number, no "=", something after it: not prompts, so neither right nor wrong."""
    with pytest.raises(ValueError, match=r"not an addition prompt.* numbers of 2 digits"):
        Addition().check(prompt, "1")


def test_orders_of_the_same_summands_share_a_split() -> None:
    """Otherwise 12 + 07 in training would give away 07 + 12 in the test."""
    task = Addition()
    rng = np.random.default_rng(0)
    for _ in range(50):
        item = rng.integers(0, 100, 3)
        assert len({task.split_of(rng.permutation(item)) for _ in range(6)}) == 1


@pytest.mark.parametrize("digits", [0, 16])
def test_digits_have_a_limit(digits: int) -> None:
    """Beyond 15 digits int64 sums would overflow without a word."""
    with pytest.raises(ValueError, match=f"digits is {digits}: it must be between 1 and 15"):
        Addition(digits=digits)


def test_the_widest_numbers_add_up() -> None:
    """15 digits, many summands: still exact."""
    prompt, answer = Addition(digits=15).prompt("test", 0, 0, difficulty=40)
    assert Addition(digits=15).check(prompt, answer)
