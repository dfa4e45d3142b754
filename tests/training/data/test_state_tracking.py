"""State tracking against permutations composed one by one, and the groups themselves."""

import itertools
from typing import Any, get_args

import numpy as np
import pytest

from mull.training.data import IGNORE, StateTracking
from mull.training.data.state_tracking import Group, group_table

ORDERS = {"Z60": 60, "A5": 60, "S5": 120}
every_group = pytest.mark.parametrize("group", get_args(Group))


@every_group
def test_a_group_is_a_group(group: Group) -> None:
    """Closed, associative, with one identity and an inverse for each element; and the generators reach all of it."""
    names, products, generators = group_table(group)
    n = len(names)
    assert n == ORDERS[group] == len(set(names)) and products.shape == (n, n)
    assert all(sorted(row) == list(range(n)) for row in (*products.tolist(), *products.T.tolist()))
    a, b, c = np.random.default_rng(0).integers(0, n, (3, 500))
    assert (products[products[a, b], c] == products[a, products[b, c]]).all()
    reached = set(generators.tolist())
    while not reached >= {int(products[x, y]) for x, y in itertools.product(reached, repeat=2)}:
        reached |= {int(products[x, y]) for x, y in itertools.product(reached, repeat=2)}
    assert len(reached) == n


def test_z60_commutes_and_the_others_do_not() -> None:
    """What makes the task hard is order."""
    for group in get_args(Group):
        products = group_table(group)[1]
        assert (products == products.T).all() == (group == "Z60")


@pytest.mark.parametrize("letters", ["elements", "generators"])
def test_labels_are_the_running_product(letters: Any) -> None:
    """Each position, by following five things through the permutations read so far."""
    task = StateTracking(9, "S5", letters)
    for index in range(10):
        (start, *items), (unscored, *labels) = task.example("train", 0, index)
        assert task.symbols[start] == "<start>" and unscored == IGNORE and len(items) == len(labels) == 9
        things = "12345"
        for item, label in zip(items, labels, strict=True):
            things = "".join(task.symbols[item][int(thing) - 1] for thing in things)
            assert task.symbols[label] == things


def test_letters_say_which_elements_occur() -> None:
    """All of them, or the two generators; answers are all elements in both."""
    few, all_of_them = StateTracking(200, "A5", "generators"), StateTracking(200, "A5")
    assert len(np.unique(few.batch("train", 0, range(20))[0][:, 1:])) == 2
    assert len(np.unique(all_of_them.batch("train", 0, range(20))[0][:, 1:])) == 60
    assert len(np.unique(few.batch("train", 0, range(20))[1][:, 20:])) == 60


def test_the_checker_reads_from_left_to_right() -> None:
    """A swap of 1 and 2, then a step of the cycle: 1 goes to 2 and on to 3."""
    task = StateTracking(2, "S5")
    assert task.check("21345 23451", "32451") and not task.check("23451 21345", "32451")
    assert StateTracking(2, "Z60").check("59 2 30", "31")
    with pytest.raises(ValueError, match="not a state_tracking prompt: '1 2'"):
        task.check("1 2", "1")


@pytest.mark.parametrize(("options", "said"), [({"group": "Z7"}, "Z60, A5, S5"), ({"letters": "all"}, "elements")])
def test_unknown_words_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        StateTracking(**options)
