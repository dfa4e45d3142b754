"""Chains of modular arithmetic against Python's own arithmetic on the text, and what a shortcut would find."""

import itertools
import re
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

from mull.training.data import IGNORE, ModChain


def evaluated(prompt: str, modulus: int) -> int:
    """The answer by rewriting: the asked variable is replaced by what it equals until only numbers are left."""
    *statements, question = prompt.split(" ; ")
    equals = dict(statement.split(" = ") for statement in statements)
    expression = question.removeprefix("? ")
    while names := re.findall(r"[a-z]+", expression):
        expression = re.sub(rf"\b{names[0]}\b", f"({equals[names[0]]})", expression)
    return int(eval(expression)) % modulus


@pytest.mark.parametrize(
    "options", [{}, {"modulus": 10, "distractors": 0}, {"modulus": 2}, {"distractors": 1, "variables": 40}]
)
@pytest.mark.parametrize("operations", [1, 2, 7, 30])
def test_labels_are_the_value_of_what_is_asked(options: dict[str, Any], operations: int) -> None:
    """By textual substitution; only the last position is scored, and all rows have one length."""
    task = ModChain(**options)
    inputs, labels = task.batch("train", 0, range(20), operations)
    further = task.distractors
    assert inputs.shape[1] == 6 * (operations + further) + (4 if further else 6)
    assert (labels[:, :-1] == IGNORE).all()
    for index in range(20):
        prompt, answer = task.prompt("train", 0, index, operations)
        assert int(answer) == evaluated(prompt, task.modulus) == labels[index, -1]


def test_every_statement_of_the_chain_is_needed_and_no_distractor_is() -> None:
    """What a statement of the chain gives its variable may be anything: then the answer may be anything, one for each.
    In any other statement it changes nothing. And the chain is as long as the difficulty says."""
    task = ModChain(5, modulus=12, distractors=3)  # 12: factors without an inverse would swallow differences
    for index in range(40):
        prompt, answer = task.prompt("test", 0, index)
        *statements, question = prompt.split(" ; ")
        found = []
        for place, statement in enumerate(statements):
            target = statement.split(" = ")[0]
            changed = [[*statements[:place], f"{target} = {k}", *statements[place + 1 :], question] for k in range(12)]
            found.append({evaluated(" ; ".join(each), 12) for each in changed})
        assert sorted(map(len, found)) == [1] * 3 + [12] * 6  # a number and five operations
        assert all(values == {int(answer)} for values in found if len(values) == 1)


def test_every_statement_of_the_chain_is_answered_where_it_ends() -> None:
    """In training the ";" of each statement of the chain is labelled with what its variable is, by textual
    substitution, and nothing else but the answer is; a test scores the answer alone."""
    task = ModChain(4, modulus=11, distractors=3, every=True)
    inputs, labels = task.batch("train", 0, range(20))
    for row, told in zip(inputs, labels, strict=True):
        words = [task.symbols[token] for token in row]
        asked, found = words[-1], {len(row) - 1: evaluated(" ".join(words), 11)}
        statements = " ".join(words).split(" ; ")[:-1]
        equals = dict(statement.split(" = ") for statement in statements)
        ends = {
            statement.split()[0]: i for statement, i in zip(statements, np.flatnonzero(row == row[-3]), strict=True)
        }
        while asked:
            found[int(ends[asked])] = evaluated(" ; ".join([*statements, f"? {asked}"]), 11)
            asked = next(iter(re.findall("[a-z]+", equals[asked])), "")
        assert {i: told[i] for i in np.flatnonzero(told != IGNORE)} == found and len(found) == 6
    for split in ("validation", "test"):
        held_out = task.batch(split, 0, range(20))
        assert ((held_out[1] != IGNORE) == (np.arange(held_out[1].shape[1]) == held_out[1].shape[1] - 1)).all()
    rows = ModChain(4, modulus=11, distractors=3, styles={"direct": 1}).batch("test", 0, range(20))[0]
    assert (held_out[0] == rows[:, : held_out[0].shape[1]]).all()  # whose beginnings decide too


def test_ordered_statements_rest_on_what_stands_before_them() -> None:
    """Those that lead elsewhere too; and the order is not always the same."""
    task, rng, orders = ModChain(3, distractors=4, ordered=True), np.random.default_rng(0), set[tuple[int, ...]]()
    for _ in range(100):
        item, known = task.draw(rng, 3), {-1}
        for _, target, source, *_ in item.tolist():
            assert source in known
            known.add(target)
        orders.add(tuple(item[:, 0].tolist()))
    assert len(orders) > 20


@pytest.mark.parametrize("options", [{}, {"ordered": True}, {"ordered": True, "styles": {"direct": 1}}])
def test_a_chain_and_its_beginnings_are_of_one_split(options: dict[str, Any]) -> None:
    """Training scores the beginnings of a chain: none of those of two operations or more is a chain of a test."""
    task = ModChain(5, modulus=5, distractors=2, every=True, **options)
    rng = np.random.default_rng(0)
    for _ in range(200):
        item = task.draw(rng, 5)
        beginnings = [item[(item[:, 0] <= most)] for most in (2, 3, 4, 5)]
        assert len({task.split_of(beginning) for beginning in beginnings}) == 1
    with pytest.raises(ValueError, match="a chain of 1 operation has no steps on the way: use 2 operations or more"):
        task.batch("train", 0, [0], 1)


@pytest.mark.parametrize("ordered", [False, True])
def test_in_front_of_a_trace_statements_are_scored_that_a_causal_model_can_work_out(ordered: bool) -> None:
    """Each ";" behind which the text so far tells the variable's value by itself, by substitution in that text alone;
    what stands behind the question is learned as without `every`, and a test scores nothing else. Where statements are
    ordered that is all of the chain, and a model without traces need see no further either."""
    styles = {"direct": 1, "chain": 1, "draft": 1}
    task = ModChain(4, modulus=10, distractors=3, styles=styles, every=True, ordered=ordered)
    plain = ModChain(4, modulus=10, distractors=3, styles=styles, ordered=ordered)
    (inputs, labels), (bare, learned) = (each.batch("train", 0, range(40)) for each in (task, plain))
    asked, scored = task.lengths(4).question, 0
    assert (inputs == bare).all() and (labels[:, asked - 1 :] == learned[:, asked - 1 :]).all()
    assert (learned[:, : asked - 1] == IGNORE).all()
    for row, told in zip(inputs[:, :asked], labels, strict=True):
        words = [task.symbols[token] for token in row]
        equals = dict(statement.split(" = ") for statement in " ".join(words).split(" ; ")[:-1])
        chain, wanted = [words[-1]], dict[int, int]()
        while before := re.findall("[a-z]+", equals[chain[-1]]):
            chain += before
        for end in (i for i, word in enumerate(words) if word == ";"):
            name = " ".join(words[:end]).split(" ; ")[-1].split()[0]
            with suppress(KeyError):  # what it rests on is not there yet
                if name in chain:
                    wanted[end] = evaluated(" ".join([*words[:end], "; ?", name]), 10)
        assert {i: told[i] for i in np.flatnonzero(told[: asked - 1] != IGNORE)} == wanted
        scored += len(wanted)
    assert (scored == 40 * 5) is ordered and scored > 40
    for split in ("validation", "test"):
        for one, other in zip(*(each.batch(split, 0, range(20)) for each in (task, plain)), strict=True):
            assert (one == other).all()
    assert task.sees_all is False and ModChain(4, every=True, ordered=ordered).sees_all is not ordered


def test_names_order_and_distractors_make_no_other_item() -> None:
    """The chain alone decides the split: the same one drawn among other statements is in the same split."""
    task = ModChain(3, modulus=5, distractors=3)
    rng = np.random.default_rng(0)
    item = task.draw(rng, 3)
    renamed = item.copy()
    names = rng.permutation(len(task.names))
    renamed[:, 1] = names[item[:, 1]]
    renamed[:, 2] = np.where(item[:, 2] < 0, -1, names[item[:, 2]])
    off = renamed[:, 0] < 0
    renamed[off, 4] = 1
    moved = renamed[rng.permutation(len(item))]
    assert task.canonical(moved) == task.canonical(item)
    assert task.lay_out(moved[None], 3)[1][0, -1] == task.lay_out(item[None], 3)[1][0, -1]
    on = (item[:, 0] == 2).argmax()
    item[on, 3:] = 0, (item[on, 4] + 1) % 5
    assert task.canonical(moved) != task.canonical(item)


def test_a_guess_is_right_once_in_the_modulus() -> None:
    """4000 answers modulo 5, and given the last constant of the text: each within 5 standard deviations of a fifth."""
    inputs, labels = ModChain(4, modulus=5).batch("train", 0, range(4000))
    answers = labels[:, -1]
    assert np.abs(np.bincount(answers, minlength=5) / 4000 - 0.2).max() < 5 * (0.16 / 4000) ** 0.5
    for constant in range(5):
        rows = answers[inputs[:, -4] == constant]
        assert np.abs(np.bincount(rows, minlength=5) / len(rows) - 0.2).max() < 5 * (0.16 / len(rows)) ** 0.5


def test_the_checker_follows_any_text() -> None:
    """Statements in any order, names of two letters, and a question in the middle of a chain."""
    task = ModChain(modulus=7)
    assert task.check("b = a * 3 ; ab = b - 5 ; a = 6 ; ? ab", "6") and not task.check("a = 6 ; ? a", "5")
    assert task.check("b = a * 3 ; ab = b - 5 ; a = 6 ; ? b", "4")


@pytest.mark.parametrize(
    "prompt",
    ["a = 1 ; ? b", "a = b + 1 ; b = a + 1 ; ? a", "a = 1 ; a = 2 ; ? a", "a = 9 ; ? a", "a = 1 ? a", "a = b ; ? a",
     "a = 1 ; b = a / 1 ; ? b", "a = 1 ; b = a + a ; ? b", "a = 1 ; b = 2 + 1 ; ? b", "a = 1 ;", "b ; a = 1 ; ? a"],
)  # fmt: skip
def test_a_text_without_an_answer_is_refused(prompt: str) -> None:
    """Undefined, circular, ambiguous and foreign statements are named, whatever the answer."""
    with pytest.raises(ValueError, match="not a mod_chain prompt"):
        ModChain(modulus=7).check(prompt, "1")


@pytest.mark.parametrize(
    ("options", "said"),
    [({"modulus": 1}, "modulus is 1: it must be between 2 and 1000"), ({"distractors": -1}, "must be 0 or more"),
     ({"variables": 703}, "between 2 and 702"),
     ({"operations": 22, "variables": 26}, "22 operations and 4 distractors need 27 variables, not 26: raise var")],
)  # fmt: skip
def test_options_outside_their_limits_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ModChain(**options)


def test_small_spaces_are_reached_whole() -> None:
    """Every chain of one operation modulo 3 is drawn: 3 numbers, 3 + 3 + 2 operations."""
    task = ModChain(1, modulus=3, distractors=0, variables=2)
    rng = np.random.default_rng(1)
    drawn = {task.canonical(task.draw(rng, 1)) for _ in range(1000)}  # each is missed once in 10^14 runs
    assert len(drawn) == len(list(itertools.product(range(3), range(8))))
