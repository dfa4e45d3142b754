"""`mull solve` as a person meets it: the answer, what happened and what it cost; and every mistake one line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import mull
from mull.cli import main
from mull.inference.strategies.scorers import LogProbability
from mull.models import LanguageModel


@pytest.fixture(scope="module")
def folder(make_writer: Callable[..., LanguageModel], tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, path = make_writer(), tmp_path_factory.mktemp("folders") / "writer"
    mull.save(model, path, tokenizer=model.tokenizer)
    return path


def test_it_prints_what_solve_returns(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards the command against the function: the same answer, trace and cost, for people and as JSON."""
    line = ["solve", str(folder), "--prompt", "1 + 2", "--strategy", "best_of_n:3", "--iterations", "2", "--seed", "5"]
    line += ["--max-new-tokens", "12", "--temperature", "1.2", "--top-k", "9", "--exit", "latent:0.3"]
    assert main([*line, "--json", "--batch-size", "2"]) == 0
    told = json.loads(capsys.readouterr().out)
    expected = mull.solve(
        mull.load(folder), "1 + 2", "best_of_n:3", iterations=2, exit="latent:0.3", generator=5, max_new_tokens=12,
        temperature=1.2, top_k=9,
    )  # fmt: skip
    assert {**told["cost"], "seconds": 0} == {
        **expected.cost.as_dict(),
        "seconds": 0,
        "flops": pytest.approx(told["cost"]["flops"]),
    }
    assert (told["answer"], told["text"]) == (expected.answer, expected.text) and told["ceiling"] is False
    assert [event["text"] for event in told["trace"]] == [event.text for event in expected.trace]
    assert main(line) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("answer    ") and (expected.answer or "none: the thinking had not ended") in lines[0]
    assert sum(line.lstrip().startswith("* sample") for line in lines) == 1 and len(lines) == 3 + 3
    assert "FLOPs" in lines[-1] and f"{expected.cost.tokens} tokens written" in lines[-1] and "3 calls" in lines[-1]


def test_json_holds_no_nan(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards who reads the object: NaN is no JSON, wherever a score of it may come from."""
    monkeypatch.setattr(LogProbability, "prefixes", lambda *_: [float("nan")])
    assert main(["solve", str(folder), "--prompt", "1", "--strategy", "best_of_n:2", "--json"]) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("mull: error: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["FOLDER", "--prompt", "1", "--strategy", "dream"],
            "strategy 'dream' is not known; known are best_of_n, beam",
        ),
        (["FOLDER", "--prompt", "1", "--strategy", "best_of_n:2,scorer=wise"], "scorer 'wise' is not known"),
        (["FOLDER", "--prompt", "1", "--strategy", "majority:2,size=3"], "option 'size=3' is not known"),
        (["FOLDER", "--prompt", "1", "--strategy", "best_of_n:2,scorer=process"], "train one with value_head: true"),
        (["FOLDER", "--prompt", "1", "--strategy", "best_of_n:2,scorer=oracle"], "it asks the exact checker"),
        (["FOLDER", "--prompt", "x"], "unknown symbol 'x'"),
        (["FOLDER", "--prompt", " "], "the problem is empty"),
        (["FOLDER", "--prompt", "1 + 2 <direct>"], "ends with the style <direct>: leave it out"),
        (["FOLDER", "--prompt", "1 " * 70], "max_length is 64"),
        (["FOLDER", "--prompt", "1", "--iterations", "0"], "--iterations: invalid integer from 1 to"),
        (["FOLDER", "--prompt", "1", "--exit", "latent"], "exit latent lacks threshold"),
        (["parity", "--prompt", "1 1"], "no <chain>: it was trained without traces"),
        (["nowhere", "--prompt", "1"], "nowhere"),
        (["FOLDER"], "prompt"),
    ],
)
def test_mistakes_are_one_line(words: list[str], says: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["solve", *(str(folder) if word == "FOLDER" else word for word in words)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.strip().splitlines()) == 1 and says in captured.err


def test_help_lists_what_can_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    """Guards the words that the command takes: all strategies, scorers and exit rules, each with its options."""
    with pytest.raises(SystemExit):
        main(["solve", "--help"])
    said = capsys.readouterr().out
    assert all(word in said for word in (*mull.inference.strategies.STRATEGIES, "log_probability", "latent:0.03"))
    assert "scorer= takes one of" in said and "aggregation=last" in said
