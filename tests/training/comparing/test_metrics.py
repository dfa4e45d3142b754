"""The metrics of papers on answers that were written by hand."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from mull.inference.strategies import Marks
from mull.inference.strategies.compute_optimal import bin_at
from mull.training.comparing.cells import Answered, Cell
from mull.training.comparing.metrics import bins, control, drafts, right_thought, s1, scaling, underthinking

Make = Callable[..., Cell]
MARKS = {"model": Marks()}


def test_s1(make: Make) -> None:
    """Formulas on known numbers: slopes over all pairs, the best, the share within limits; the twin in depth."""
    assert scaling([1, 2, 4], [0.2, 0.4, 0.5]) == pytest.approx((0.2 / 1 + 0.1 / 2 + 0.3 / 3) / 3)
    assert scaling([2, 2], [0.1, 0.2]) is None and scaling([], []) is None
    assert control([1, 5, 9, 10], 2, 9) == 0.5 and control([1, 5], None, 4) == 0.5 and control([1], None, None) is None
    cells = [make(f"budget_forcing:{n}", 2, 0.2 + 0.1 * n, tokens=10 + 10 * n) for n in (0, 1, 2)]
    texts = ["1 2 3 </think> 4 5", "1 2 </think> 3", "1 2 3 4"]  # what is thought counts
    for number, text in enumerate(texts):
        answered = tuple(replace(each, text=text) for each in cells[number].answered)
        cells[number] = replace(cells[number], limits=(None, 3.0), answered=answered)
    cells += [make("chain", 2, 0.2), make("chain", 4, 0.6)]
    by_tokens, in_depth = list(s1(cells, MARKS))
    assert (by_tokens["strategy"], by_tokens["knob"], by_tokens["budgets"]) == ("budget_forcing:N", "tokens", 3)
    assert by_tokens["scaling"] == pytest.approx(0.01) and by_tokens["performance"] == 0.4
    assert by_tokens["control"] == pytest.approx(2 / 3)
    assert (in_depth["strategy"], in_depth["knob"], in_depth["control"]) == ("chain", "iterations", None)
    assert in_depth["scaling"] == pytest.approx(0.2)


def test_a_cap_is_a_budget(make: Make) -> None:
    """Guards budget forcing's own knob: several caps are one curve; and a thinking that was cut off keeps to its cap,
    whose last step is closed beyond it."""
    cells = []
    for cap, accuracy, text in (
        (4, 0.2, "1 <step> 2 = <step> </think> 3"),
        (6, 0.6, "1 <step> 2 = 3 <step> </think> 3"),
    ):
        cell = make(f"budget_forcing:0,cap={cap}", 2, accuracy, tokens=cap + 2)
        answered = tuple(replace(each, text=text) for each in cell.answered)
        cells.append(replace(cell, limits=(None, float(cap)), answered=answered))
    (found,) = s1(cells, MARKS)
    assert (found["strategy"], found["budgets"], found["control"]) == ("budget_forcing:N,cap=C", 2, 1.0)
    assert found["scaling"] == pytest.approx(0.2)
    over = tuple(replace(each, text="1 <step> 2 = 3 4 5 </think> 3") for each in cells[1].answered)
    assert next(iter(s1([cells[0], replace(cells[1], answered=over)], MARKS)))["control"] == 0.5


def test_control_goes_by_tokens(make: Make) -> None:
    """Guards writers whose words are of several tokens: one word of five tokens does not keep to a cap of four."""
    cells = []
    for cap, tokens in ((4, 5), (6, 5)):
        cell = make(f"budget_forcing:0,cap={cap}", 2, tokens=cap)
        answered = tuple(replace(each, text="12345 </think> 3", thinking=tokens) for each in cell.answered)
        cells.append(replace(cell, limits=(None, float(cap)), answered=answered))
    (found,) = s1(cells, MARKS)
    assert found["control"] == 0.5


@pytest.mark.parametrize(
    ("text", "labels", "share"),
    [
        ("a <step> b <step> </think> 3", [True, True], 1.0),  # all of it is the right thought
        ("a <step> b <step> <switch> c <step> d e f", [False, False, True], 1.0),
        ("a <step> b <step> <switch> c <step> d e", [True, True, False], 4 / 9),
        ("a <step> <switch> b <step> <switch> c d", [True, True], 2 / 8),
        ("a <step> <switch> b <step> <switch> c d", [False, True], 5 / 8),
        ("a <step> b <step> <switch> c <step>", [True, False, False], 1.0),  # it began well, and went wrong
        ("<switch> a <step> b <switch> c d", [True], 4 / 7),  # an attempt without a step is no thought
        ("no step", [], 1.0),
    ],
)
def test_right_thought(text: str, labels: list[bool], share: float) -> None:
    """T' / T: tokens up to the end of the first attempt all of whose steps are on a right path."""
    assert right_thought(text, labels, "<switch>", "<step>") == pytest.approx(share)


def test_underthinking_is_of_wrong_answers(make: Make) -> None:
    """The mean of 1 - T' / T over wrong answers only; cells without labels say nothing."""
    wrong = Answered(False, None, 9, 1, 0, "", "a <step> b <step> <switch> c <step> d e", (True, True, False))
    lost = replace(wrong, labels=(False, False, False))
    cell = replace(make("chain", 1), answered=(wrong, lost, replace(wrong, right=True)))
    (found,) = underthinking([cell, make("direct", 1)], MARKS)
    assert found["underthinking"] == pytest.approx((5 / 9 + 0) / 2) and found["wrong"] == 2
    assert found["with_a_right_thought"] == 1 and found["attempts"] == 2
    right = replace(cell, answered=(replace(wrong, right=True),))
    assert next(iter(underthinking([right], MARKS)))["underthinking"] is None


def test_bins(make: Make) -> None:
    """Absolute bins, the same problems for every strategy and depth, by the cell with the most samples."""
    assert [bin_at(share) for share in (1, 0.5, 0.49, 0.1, 0.09, 0)] == [
        "easy",
        "easy",
        "medium",
        "medium",
        "hard",
        "hard",
    ]

    def cell(strategy: str, iterations: int, answers: list[tuple[bool, tuple[bool, ...] | None]]) -> Cell:
        answered = tuple(Answered(right, 1.0, 1, 1, 0, samples=samples) for right, samples in answers)
        return replace(make(strategy, iterations), answered=answered)

    half, none = (True, True, False, False), (False,) * 4
    judge = cell("majority:4", 2, [(True, half), (False, none), (True, half)])
    other = cell("majority:4", 1, [(True, none), (False, none), (True, none)])
    plain = cell("chain", 1, [(True, None), (True, None), (False, None)])
    found = [each for each in bins([other, judge, plain], MARKS) if each["strategy"] == "chain"]
    assert [(each["bin"], each["accuracy"], each["examples"]) for each in found] == [
        ("easy", 0.5, 2),
        ("medium", None, 0),
        ("hard", 1.0, 1),
    ]
    assert found[0]["by"] == "majority:4, 2 iterations, less 0 texts"
    assert list(bins([plain], MARKS)) == []


def test_bins_go_by_texts_that_nobody_chose_among(make: Make) -> None:
    """Guards against binning by the outcome: 2,000 problems of one Pass@1, 30 %, are equally hard, and so every
    strategy is right as often in every bin, although the first eight texts are the same for all. What draws as many as
    the judge has no row."""
    rng = np.random.default_rng(0)
    texts = rng.random((2000, 16)) < 0.3

    def cell(strategy: str, rights: np.ndarray, samples: np.ndarray | None, n: int | None) -> Cell:
        given = [None] * len(rights) if samples is None else [tuple(map(bool, each)) for each in samples]
        answered = [Answered(bool(right), 1.0, 1, 1, 0, samples=own) for right, own in zip(rights, given, strict=True)]
        return replace(make(strategy), answered=tuple(answered), samples=n)

    cells = [
        cell("majority:16", texts.sum(axis=1) > 8, texts, 16),
        cell("best_of_n:8,scorer=random", texts[:, 3], texts[:, :8], 8),
        cell("beam:8", texts[:, 0], None, 8),  # its first steps are those of the first texts
        cell("chain", texts[:, 0], None, None),  # as it would be at a temperature
    ]
    found = list(bins(cells, MARKS))
    assert {each["strategy"] for each in found} == {"best_of_n:8,scorer=random", "beam:8", "chain"}
    assert all(each["low"] < 0.3 < each["high"] for each in found if each["examples"] > 100)
    assert sum(each["examples"] > 100 for each in found) >= 6


def test_drafts(make: Make) -> None:
    """Tokens and the paired difference, of the same depth only."""
    cells = [make("chain", 2, 0.8, tokens=20), make("draft", 2, 0.7, tokens=5), make("draft", 4, 0.7, tokens=5)]
    (found,) = drafts(cells, MARKS)
    assert (found["iterations"], found["tokens"], found["tokens_of_chain"], found["share_of_tokens"]) == (
        2,
        5,
        20,
        0.25,
    )
    assert found["difference"] == pytest.approx(-0.1) and found["low"] < -0.1 < found["high"] < 0
    votes = [make("majority:8", 2, 0.9, samples=8, tokens=80), make("majority:8,style=draft", 2, 0.8, samples=8)]
    (found,) = drafts(votes, MARKS)  # chains are the usual style, which need not be said
    assert (found["strategy"], found["tokens_of_chain"]) == ("majority:8,style=draft", 80)


def test_metrics_go_by_what_a_strategy_is_and_not_by_how_it_is_written(make: Make) -> None:
    """Guards knobs and pairs against spelling: a cap is one by its place or by its name, a draft is a draft wherever
    its style stands; and a depth of one's own is no point of a curve over iterations."""
    caps = [make(f"budget_forcing:0:{cap}", 2, accuracy, tokens=cap) for cap, accuracy in ((4, 0.2), (16, 0.4))]
    (found,) = s1(caps, MARKS)
    assert (found["strategy"], found["budgets"]) == ("budget_forcing:N,cap=C", 2)
    pair = [make("majority,style=draft,n=8", 2, 0.2, tokens=3), make("majority:8", 2, 0.5, tokens=9)]
    (found,) = drafts(pair, MARKS)
    assert (found["strategy"], found["difference"]) == ("majority,style=draft,n=8", pytest.approx(-0.3))
    assert not list(drafts([make("best_of_n:8,style=draft", 2), pair[1]], MARKS))
    assert not list(s1([make("budget_forcing:0,most=8", r, 0.1 * r, tokens=5) for r in (1, 2)], MARKS))
