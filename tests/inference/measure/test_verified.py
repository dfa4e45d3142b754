"""Written answers, judged: `mull evaluate --verify`."""

import json

import pytest

import mull
from mull.cli import main
from mull.training.data import Parity, TaskData


def test_a_verified_answer_is_the_one_that_generate_writes(capsys: pytest.CaptureFixture[str]) -> None:
    """Of parity the last position is the answer: the share is counted here by hand, shallow and deep."""
    line = [
        "evaluate",
        "parity",
        "--iterations",
        "2,32",
        "--difficulty",
        "12",
        "--examples",
        "40",
        "--verify",
        "--json",
    ]
    assert main(line) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    model, task = mull.load("parity"), Parity(length=32)
    prompts = [task.prompt("test", 0, index, 12) for index in range(40)]
    for row, count in zip(rows, (2, 32), strict=True):
        written = mull.generate(model, [prompt for prompt, _ in prompts], count, max_new_tokens=1).text
        assert written is not None
        right = sum(text.split() == answer.split()[:1] for text, (_, answer) in zip(written, prompts, strict=True))
        assert row["verified"] == right / 40 and row["verified_low"] <= row["verified"] <= row["verified_high"]
    assert rows[0]["verified"] < 0.8 < rows[1]["verified"] == 1.0


def test_every_test_item_is_asked_once_and_its_own_answer_is_right() -> None:
    data = TaskData(Parity(length=12), difficulty=[12, 14])
    questions = data.questions(examples=30)
    assert list(questions) == [12, 14]
    for difficulty, asked in questions.items():
        answers = [data.task.prompt("test", 0, index, difficulty)[1] for index in range(30)]
        assert len({prompt for prompt, _ in asked}) == 30
        assert all(judge(answer) for (_, judge), answer in zip(asked, answers, strict=True))
        assert not any(
            judge({"odd": "even", "even": "odd"}[answer]) for (_, judge), answer in zip(asked, answers, strict=True)
        )


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (["sudoku"], "causal: false, so it keeps no cache and writes no text"),
        (["text", "--paths", "README.md"], "--verify asks a verifier about answers, and TextData has none here"),
        (["parity", "--restarts", "2"], "written out from one start: leave --restarts or --verify out"),
        (["parity", "--selection", "top_k"], "which select causally: leave --selection out"),
        (["parity", "--tokens"], "--tokens prints tables of its own, and measures nothing else: leave --verify out"),
    ],
)
def test_where_nothing_is_judged_it_is_said_in_one_line(
    line: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", *line, "--verify"]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
