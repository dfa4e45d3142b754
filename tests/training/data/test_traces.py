"""Traces: rows that say what they mean, masks and judgements, against brute force and against the texts themselves."""

import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from mull.training.data import IGNORE, Countdown, ModChain, ShortestPath, TracedTask, Traces
from mull.training.data.shortest_path import distances
from mull.training.data.task import END
from mull.training.data.traces import (
    BACKTRACK,
    END_OF_THINKING,
    MARKS,
    STEP,
    STYLE_WORDS,
    STYLES,
    SWITCH,
    WAIT,
    Draws,
    Mixture,
)

ALL = dict.fromkeys(STYLES, 1.0)
BUSY = Traces(wrong=0.6, doubts=0.2, abandoned=0.7, detours=3)


def tasks(styles: dict[str, float] | None = ALL, traces: Traces | None = BUSY) -> list[TracedTask]:
    return [
        ModChain(3, modulus=10, distractors=2, variables=26, styles=styles, traces=traces),
        Countdown(4, largest=30, styles=styles, traces=traces),
        ShortestPath(3, nodes=12, extra=3, styles=styles, traces=traces),
    ]


every_task = pytest.mark.parametrize("task", tasks(), ids=lambda task: task.name)


def rows(task: TracedTask, count: int = 60) -> Iterator[tuple[list[str], list[str | None], list[float], str]]:
    """Words, labels as words (None: not learned), judgements, and the style of training rows, padding cut off."""
    columns = task.columns("train", 0, range(count))
    for ids, labels, values in zip(
        *(columns[name].tolist() for name in ("input_ids", "labels", "values")), strict=True
    ):
        words = [task.symbols[token] for token in ids]
        last = words.index(END) if END in words else len(words)
        assert all(label == IGNORE for label in labels[last:]) and all(value == -1 for value in values[last:])
        told = [None if label == IGNORE else task.symbols[label] for label in labels[:last]]
        style = next(word for word in words if word in STYLE_WORDS)
        yield words[:last], told, values[:last], style[1:-1]


@every_task
def test_a_row_is_its_item_whatever_the_batch_and_whatever_the_style(task: TracedTask) -> None:
    """Batch = single; and styles do not move an item to another place of its stream, or to another split."""
    columns = task.columns("train", 3, [5, 0, 2**40])
    for row, index in enumerate([5, 0, 2**40]):
        alone = task.columns("train", 3, [index])
        assert all(np.array_equal(columns[name][row], alone[name][0]) for name in columns)
    asked = task.lengths(task.default_difficulty).question
    other = tasks({"chain": 1.0}, None)[[each.name for each in tasks()].index(task.name)]
    for split in ("train", "test"):
        first, second = (each.batch(split, 0, range(30))[0][:, :asked] for each in (task, other))
        assert np.array_equal(first, second)


@every_task
def test_no_question_is_in_two_splits_and_no_style_shows_another_splits(task: TracedTask) -> None:
    questions = {
        split: {problem_text(task, split, seed, i) for seed in (0, 1) for i in range(30)}
        for split in ("train", "validation", "test")
    }
    assert all(len(each) > 40 for each in questions.values())
    for one, other in itertools.combinations(questions.values(), 2):
        assert not one & other


def problem_text(task: TracedTask, split: str, seed: int, index: int) -> str:
    return task.prompt(split, seed, index)[0].rpartition(" ")[0]  # type: ignore[arg-type]


def test_a_chain_of_a_test_is_the_beginning_of_no_chain_of_training() -> None:
    """A trace shows results on the way: they must not be answers of a test."""
    task = ModChain(2, modulus=6, distractors=0, variables=26, styles={"chain": 1.0})
    beginnings: dict[str, set[bytes]] = {}
    for split in ("train", "test"):
        beginnings[split] = set()
        for difficulty in (2, 4):
            for item in task.items(split, 0, range(50), difficulty):  # type: ignore[arg-type]
                ordered = item[item[:, 0].argsort()][:3, 3:]
                beginnings[split].add(ordered.tobytes())
    assert len(beginnings["test"]) > 10 and not beginnings["train"] & beginnings["test"]
    with pytest.raises(ValueError, match="a chain of 1 operation has no steps on the way: use 2 operations or more"):
        task.batch("train", 0, [0], 1)


@every_task
def test_a_row_parses_back_into_its_item(task: TracedTask) -> None:
    """The layout of each style, word by word: where marks stand, and that the checker takes what stands at the end."""
    met = set()
    for words, _, _, style in rows(task):
        met.add(style)
        at = words.index(f"<{style}>")
        question, written = words[:at], words[at + 1 :]
        marks = [word for word in written if word in MARKS]
        allowed = {"direct": set(), "chain": {STEP}, "draft": {STEP}, "correct": {STEP, WAIT},
                   "attempts": {STEP, SWITCH}, "search": {STEP, BACKTRACK}}[style]  # fmt: skip
        assert set(marks) <= allowed | {END_OF_THINKING}
        assert marks.count(END_OF_THINKING) == (style != "direct")
        assert task.check(" ".join(words[: at + 1]), " ".join(written))
        assert task.check(" ".join(question), f"{' '.join(written)} {END}")
        answer = " ".join(written).rpartition(END_OF_THINKING)[2].split()
        assert task.judge(" ".join(question), " ".join(answer))
        for mark in (WAIT, SWITCH, BACKTRACK):  # each follows the end of a step, or one of its kind
            assert all(written[i - 1] in (STEP, BACKTRACK) for i, word in enumerate(written) if word == mark)
    assert met == {*STYLES}


@every_task
def test_nothing_wrong_is_learned_and_all_else_is(task: TracedTask) -> None:
    """Exact masks: walking through the words, a step that the task itself finds wrong has no label; every other word
    behind the style has one, but for a needless <wait>. Judgements stand at <step>, and are those of `reachable`."""
    wrong = right = 0
    for words, told, values, style in rows(task):
        at = words.index(f"<{style}>")
        assert all(label is None for label in told[:at])
        written, learned = [*words[at + 1 :], END], told[at:]
        ends = [i for i, word in enumerate(written) if word == STEP]
        judged = task.reachable(" ".join(words[: at + 1]), " ".join(written))
        assert [values[at + 1 + i] for i in ends] == [float(value) for value in judged]
        assert sum(value >= 0 for value in values) == len(ends)
        begin = 0
        for end, fine in zip(ends, judged, strict=True):
            while written[begin] in (WAIT, SWITCH, BACKTRACK):
                needless = written[begin] == WAIT and judged[ends.index(begin - 1)]
                assert learned[begin] == (None if needless else written[begin])
                begin += 1
            assert learned[begin : end + 1] == (written[begin : end + 1] if fine else [None] * (end + 1 - begin))
            wrong, right, begin = wrong + (not fine), right + fine, end + 1
        assert learned[begin:] == written[begin:]
    assert wrong > 15 and right > 100


def test_the_steps_of_a_chain_are_those_that_a_person_would_write() -> None:
    """By Python's own arithmetic: each step in full is a true equation, a draft has the results of the same steps."""
    task = ModChain(3, modulus=10, distractors=2, variables=26, styles={"chain": 1.0})
    draft = ModChain(3, modulus=10, distractors=2, variables=26, styles={"draft": 1.0})
    for index in range(20):
        prompt, written = task.prompt("test", 0, index)
        thinking, answer = written.split(f" {END_OF_THINKING} ")
        steps = thinking.removesuffix(f" {STEP}").split(f" {STEP} ")
        known: dict[str, str] = {}
        for step in steps:
            name, *formula = step.split(" = ")
            assert eval(formula[0]) % 10 == int(formula[-1])
            said = next(each for each in prompt.split(" ; ") if each.startswith(f"{name} = "))
            source = said.split(" = ")[1].split()[0]
            assert source.isdigit() or formula[0].split()[0] == known[source]
            known[name] = formula[-1]
        assert prompt.split()[-2] == name and known[name] == answer and len(steps) == 4
        short = draft.prompt("test", 0, index)[1].split(f" {END_OF_THINKING} ")[0]
        assert short.removesuffix(f" {STEP}").split(f" {STEP} ") == [*known.values()]


def every_way(numbers: tuple[int, ...], largest: int) -> set[int]:
    """What Python's own arithmetic makes of some of these numbers, in one step or more."""
    found = set()
    for i, j in itertools.permutations(range(len(numbers)), 2):
        a, b = numbers[i], numbers[j]
        rest = [n for k, n in enumerate(numbers) if k not in (i, j)]
        for result in (a + b, a - b, a * b, a / b if b else -1):
            if 0 <= result <= largest and result == int(result):
                found |= {int(result)} | every_way((*rest, int(result)), largest)
    return found


def test_countdown_knows_what_can_still_be_reached() -> None:
    """Against brute force: after every possible first step of some questions, in full and by its result alone."""
    task = Countdown(4, largest=20, styles={"chain": 1.0})
    seen = set()
    for problem in task.problems("test", 0, 3):
        *words, _, target, _ = problem.text.split()
        numbers = tuple(map(int, words))
        for i, j in itertools.permutations(range(4), 2):
            a, b, rest = numbers[i], numbers[j], [n for k, n in enumerate(numbers) if k not in (i, j)]
            for operator, result in (("+", a + b), ("-", a - b), ("*", a * b), ("/", a / b if b else -1), ("+", a)):
                sound = 0 <= result <= 20 and result == int(result)
                right = sound and (operator != "+" or result == a + b)
                within = result == int(target) or int(target) in every_way((*rest, int(result)), 20)
                step = f"{a} {operator} {b} = {int(result)} {STEP}"
                assert problem.steps(step) == [right and within], (problem.text, step)
                seen.add(right and within)
                if right:  # some step has this result, and this one does
                    assert problem.steps(f"{int(result)} {STEP}") >= [within]
    assert seen == {True, False}


def test_a_shortest_path_knows_what_can_still_be_reached() -> None:
    """Against the list of all shortest ways: a prefix of one can, and nothing else."""
    task = ShortestPath(3, nodes=8, extra=4, styles={"chain": 1.0})
    for problem in task.problems("test", 0, 6):
        near, start, goal = task.asked(problem.text)
        left = distances(near, goal)
        ways = [[start]]
        for _ in range(left[start]):
            ways = [[*way, there] for way in ways for there in near[way[-1]]]
        ways = [way for way in ways if way[-1] == goal]
        names = task.own_symbols
        for way in itertools.product(range(8), repeat=3):
            whole = [start, *way]
            possible = [any(w[: k + 1] == whole[: k + 1] for w in ways) for k in (1, 2, 3)]
            full = " ".join(f"{names[a]} {names[b]} {STEP}" for a, b in itertools.pairwise(whole))
            short = " ".join(f"{names[b]} {STEP}" for b in way)
            assert problem.steps(full) == problem.steps(short) == possible
            assert problem.check(" ".join(names[node] for node in whole)) == possible[-1]


def test_marks_take_back_what_they_say() -> None:
    """<wait> and <backtrack> the last step, <switch> all of them; what is not ended, or behind </think>, is no step."""
    task = ModChain(2, modulus=10, distractors=0, variables=26, styles=ALL)
    steps = task.problems("test", 0, 1)[0].steps
    prompt, _ = task.prompt("test", 0, 0)
    good = [" ".join(step) for step in task.told(prompt.rpartition(" ")[0])]
    bad = f"{good[1][:-1]}{(int(good[1][-1]) + 1) % 10}"
    one, two, three, wrong = (f"{text} {STEP} " for text in (*good, bad))
    assert steps(one + two + three) == [True, True, True]
    assert steps(one + wrong + three) == [True, False, False]
    assert steps(one + wrong + f"{WAIT} " + two + three) == [True, False, True, True]
    assert steps(one + wrong + wrong + f"{BACKTRACK} " * 2 + two) == [True, False, False, True]
    assert steps(one + wrong + f"{BACKTRACK} " * 9 + one) == [True, False, True]
    assert steps(one + wrong + f"{SWITCH} " + one) == [True, False, True]
    assert steps(one + two + "nonsense") == steps(f"{one}{two}{END_OF_THINKING} {wrong}") == [True, True]
    assert steps(f"<chain> {one}") == [True] and steps("") == [] and steps(f"{STEP} ") == [False]
    ahead = "a b , b c , c d , d e , e f , f g , g h ? a d"  # where each step goes on from the one before it
    path = ShortestPath(3, nodes=8, extra=0, styles=ALL)
    for mark in (WAIT, BACKTRACK):
        assert path.reachable(ahead, f"b {STEP} a {STEP} {mark} c {STEP} d {STEP}") == [True, False, True, True]
    assert path.reachable(ahead, f"b {STEP} a {STEP} {SWITCH} c {STEP} {SWITCH} b {STEP}") == [True, False, False, True]


def test_attempts_are_premature_or_dead_ends_as_asked() -> None:
    """The matched sets of a penalty on switching: with `premature: 1` every step is right, with 0 every attempt but the
    last has gone astray; and dead ends are learned where that is asked."""

    def attempts(**shares: float | bool) -> Iterator[tuple[list[bool], bool]]:
        traces = Traces(abandoned=0.9, detours=3, **shares)  # type: ignore[arg-type]
        task = ModChain(3, modulus=10, distractors=1, variables=26, styles={"attempts": 1.0}, traces=traces)
        for words, told, _, _ in rows(task, 40):
            text = " ".join(words)
            *given_up, _ = text.partition("<attempts>")[2].split(SWITCH)
            for attempt in given_up:
                yield (
                    task.reachable(text.partition("<attempts>")[0], attempt),
                    None in told[words.index("<attempts>") :],
                )

    premature = list(attempts(premature=1.0))
    assert len(premature) > 20 and all(all(steps) and not masked for steps, masked in premature)
    dead = list(attempts(premature=0.0))
    assert len(dead) > 20 and all(not steps[-1] and masked for steps, masked in dead)
    assert not any(masked for _, masked in attempts(premature=0.0, learn_dead_ends=True))


def test_noise_turns_judgements_round_and_nothing_else() -> None:
    """A share eps of them, the same ones at every call; rows are those without noise."""
    quiet, noisy = (tasks(ALL, Traces(noise=eps))[0].columns("train", 0, range(300)) for eps in (0.0, 0.3))
    assert all(np.array_equal(quiet[name], noisy[name]) for name in ("input_ids", "labels"))
    judged = quiet["values"] >= 0
    assert np.array_equal(judged, noisy["values"] >= 0)
    turned = (quiet["values"] != noisy["values"])[judged]
    assert abs(turned.mean() - 0.3) < 4 * (0.21 / turned.size) ** 0.5
    again = tasks(ALL, Traces(noise=0.3))[0].columns("train", 0, [7])["values"][0]
    assert np.array_equal(again, noisy["values"][7])
    held_out = [tasks(ALL, Traces(noise=eps))[0].columns("validation", 0, range(9))["values"] for eps in (0.0, 0.9)]
    assert np.array_equal(*held_out)  # what is validated is the truth


def test_styles_come_in_the_shares_that_are_asked() -> None:
    mixture = Mixture({"chain": 1, "direct": 3, "search": 0})
    draws = Draws(np.random.default_rng(0))
    found = [mixture.draw(draws) for _ in range(2000)]
    assert mixture.styles == ("direct", "chain") and abs(found.count("direct") / 2000 - 0.75) < 0.04


def test_bad_input_is_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match="unknown style 'essay': use some of direct, chain, draft"):
        ModChain(styles={"essay": 1.0})
    with pytest.raises(ValueError, match="weights of at least 0, and not all of them 0"):
        Countdown(styles={"chain": 0.0})
    with pytest.raises(ValueError, match="wrong of the traces is 2: it must be between 0 and 1"):
        Traces(wrong=2)
    with pytest.raises(ValueError, match="detours of the traces is -1"):
        Traces(detours=-1)
    with pytest.raises(ValueError, match="name styles, or leave traces out"):
        ShortestPath(traces=Traces())
    with pytest.raises(ValueError, match="writes no traces: name styles"):
        ModChain().problems("test", 0, 1)
    with pytest.raises(ValueError, match=r"length 6 is too large .* use 5 or less, or raise nodes"):
        ShortestPath(6)
    with pytest.raises(ValueError, match="nodes is 3: it must be between 4 and 26"):
        ShortestPath(nodes=3)
