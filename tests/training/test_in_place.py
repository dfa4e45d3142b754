"""Tasks that are answered in place, from the configuration to the measured folder: a network that sees whole rows."""

import json
from pathlib import Path

import pytest
import torch

import mull
from mull import cli
from mull.training.data import Maze, Sudoku
from mull.training.run import train

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on workers, epochs and command lines

ROOT = Path(__file__).parents[2]


def arguments(output: Path, task: str, *more: str) -> list[str]:
    """Of a small run of the reference configuration on another task."""
    (output.parent / "task.yaml").write_text(f"data:\n  init_args:\n    task:\n      class_path: {task}\n")
    return [
        *("--config", str(ROOT / "configs" / "reference.yaml"), "--config", str(output.parent / "task.yaml")),
        *("--output", str(output), "--trainer.max_steps", "60", "--trainer.val_check_interval", "60"),
        *("--trainer.enable_progress_bar", "false", "--data.init_args.curriculum", "null"),
        *("--model.network.init_args.config.causal", "false", *more),
    ]


def test_sudoku_trains_and_is_measured_but_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A blank on a board of 6 with four holes is mostly the digit that its row lacks: a model that sees whole rows is
    above the sixth of a guess within 60 steps."""
    given = ["--data.init_args.task.init_args.side", "6", "--data.init_args.task.init_args.holes", "4",
             "--data.init_args.validation_examples", "8"]  # fmt: skip
    monkeypatch.setattr("mull.training.run.measured_examples", lambda *_: 200)
    folder = train(arguments(tmp_path / "run", "mull.training.data.Sudoku", *given))
    assert mull.load(folder).config.causal is False
    card = (folder / "README.md").read_text()
    assert card.startswith("# run\n\nFills in Sudoku boards") and "mull generate" not in card
    rows = json.loads((folder / "depth.json").read_text())["rows"]
    assert {row["difficulty"] for row in rows} == {4} and max(row["accuracy"] for row in rows) > 0.2
    capsys.readouterr()
    assert cli.main(["evaluate", str(folder), "--iterations", "1,4", "--examples", "20", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["rows"]) == 2
    assert cli.main(["generate", str(folder), "--prompt", "1 2 3 4", "--iterations", "2"]) == 2
    line = capsys.readouterr().err
    assert "has causal: false, so it keeps no cache and writes no text" in line and line.count("\n") == 1


def test_answers_of_a_folder_are_checked_as_text() -> None:
    """What the model says at each scored cell, filled in, is a text that the task's checker takes."""
    for task in (Sudoku(4, side=4), Maze(7)):
        config = mull.TransformerConfig(
            vocab_size=len(task.symbols) + 1, d_model=16, n_heads=2, n_layers=1, causal=False
        )
        model, (input_ids, labels) = mull.Transformer(config).eval(), task.batch("test", 0, range(1))
        ids, scored = torch.from_numpy(input_ids), torch.from_numpy(labels) != -100
        said = torch.where(scored, model(ids).logits.argmax(-1), ids)[0].tolist()
        words = [task.symbols[each] if each < len(task.symbols) else "?" for each in said]
        prompt, answer = task.prompt("test", 0, 0)
        assert task.check(prompt, " ".join(words)) == (" ".join(words) == answer)


def test_text_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    """A network that sees the next token cannot be trained to predict it."""
    with pytest.raises(ValueError, match="the network would read the tokens that it is to predict"):
        train(arguments(tmp_path / "run", "mull.training.data.Addition"))
    assert not (tmp_path / "run" / "trainer" / "config.yaml").exists()
