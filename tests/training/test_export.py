"""What a run leaves for people: a card that says what the model is for, with an example and a picture."""

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import mull
from mull.checkpoints.card import model_card
from mull.cli import main
from mull.training.data import Addition, Parity, PHop, TaskData, TextData
from mull.training.data.task import Task
from mull.training.export import asked, check_keeping, export, measure, renew_card

PNG = b"\x89PNG\r\n\x1a\n"


def network(task: Task, **changes: Any) -> mull.RecurrentDepthTransformer:
    torch.manual_seed(0)
    shape: dict[str, Any] = dict(d_model=16, n_heads=2, mean_iterations=2, max_length=40) | changes
    return mull.RecurrentDepthTransformer(
        mull.RecurrentDepthConfig(vocab_size=len(task.symbols) + 1, stop_tokens=task.stop_tokens, **shape)
    )


def described(task: str, **options: Any) -> str:
    """A training.yaml (JSON is YAML) of a task."""
    init = {"task": {"class_path": f"mull.training.data.{task}", "init_args": options}, "batch_size": 4}
    return json.dumps({"data": {"class_path": "mull.training.data.TaskData", "init_args": init}})


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """A tiny parity model, exported and measured as a run does it."""
    data, folder = TaskData(Parity(12), batch_size=4, validation_examples=8), tmp_path / "tiny"
    export(network(data.task), data, folder, described("Parity", length=12))
    card = (folder / "README.md").read_text()
    assert "whether the ones so far have been even or odd" in card and "By iteration count" not in card
    measure(folder, data, [1, 2, 4], "mull evaluate tiny --iterations 1,2,4", 8, lambda _: None)
    return folder


def test_a_run_leaves_a_card_for_a_stranger(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards the order of the page, and that its example is true: the command gives the answer that stands there."""
    card = (exported / "README.md").read_text()
    assert card.startswith("# tiny\n\nSays at every bit of a row whether the ones so far have been even or odd")
    assert (exported / "depth.png").read_bytes()[:8] == PNG and "![accuracy by iteration count](depth.png)" in card
    assert "- data: random items of the task parity, made by mull: nothing to license" in card
    prompt, right = Parity(12).prompt("test", 0, 0, 12)
    lines = card.splitlines()
    place = lines.index(f"mull generate . --prompt '{prompt}' --iterations 2")
    capsys.readouterr()
    assert main(["generate", str(exported), "--prompt", prompt, "--iterations", "2"]) == 0
    assert capsys.readouterr().out.strip() == lines[place + 1].strip()
    assert f"`{right}` is right" in card and "| vs 2 |" in card


def test_a_card_can_be_written_anew_from_what_the_folder_holds(
    exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards shipped folders: the same page, own words kept; the command does it, and measures nothing."""
    before = (exported / "README.md").read_text()
    depth = (exported / "depth.json").read_bytes()
    (exported / "README.md").write_text(before + "\n## Baselines\n\nNone.\n")
    (exported / "depth.png").unlink()
    assert main(["inspect", str(exported), "--card"]) == 0
    assert (exported / "README.md").read_text() == before + "\n## Baselines\n\nNone.\n"
    assert (exported / "depth.png").read_bytes()[:8] == PNG and (exported / "depth.json").read_bytes() == depth
    assert "vs 2" in capsys.readouterr().out  # inspect shows what the card shows
    (exported / "training.yaml").unlink()
    renew_card(exported)
    assert (exported / "README.md").read_text().startswith("# tiny\n\nA `recurrent_depth` model")
    with pytest.raises(FileNotFoundError):
        renew_card(exported / "nowhere")


@pytest.mark.parametrize(
    ("depth", "says"),
    [
        ({"rows": []}, "lacks a command or rows"),
        ({"command": "x", "rows": [{"loss": "low"}]}, "which is no number"),
        ({"command": "x", "rows": [{"loss": 1.0}]}, "a result of the evaluation lacks iterations, difficulty"),
    ],
)
def test_a_damaged_table_makes_no_card(
    exported: Path, depth: dict[str, Any], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards folders of others: one line, and the page as it was."""
    before = (exported / "README.md").read_bytes()
    (exported / "depth.json").write_text(json.dumps(depth))
    assert main(["inspect", str(exported), "--card"]) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1 and (exported / "README.md").read_bytes() == before


def test_results_can_be_kept_in_the_folder(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards `evaluate --record`: depth.json has the line that makes it, and the page has its numbers."""
    line = ["evaluate", str(exported), "--iterations", "1,3", "--difficulty", "16", "--examples", "4"]
    assert main([*line, "--record", "--json"]) == 0
    found = json.loads((exported / "depth.json").read_text())
    assert found["command"] == " ".join(["mull", *line, "--json"])
    assert found["rows"] == json.loads(capsys.readouterr().out)["rows"]
    assert [row["reference"] for row in found["rows"]] == [3, None]  # 2, the default count, was not measured
    assert "| 16 | 1 |" in (exported / "README.md").read_text()


def test_a_card_never_takes_what_was_measured_on_for_what_was_trained_on(tmp_path: Path) -> None:
    """Guards `evaluate --paths --record`: the text that is measured on stands in the command, and nowhere else."""
    for name in ("novel", "sheep"):
        (tmp_path / f"{name}.txt").write_text(f"Once there was a {name}, and it was counted. " * 40)
    init = {"paths": [str(tmp_path / "novel.txt")], "length": 16}
    model = mull.Transformer(mull.TransformerConfig(vocab_size=257, d_model=16, n_heads=2, n_layers=1, max_length=16))
    training = {"data": {"class_path": "mull.training.data.TextData", "init_args": init}}
    mull.save(model, tmp_path / "tiny", training=training)
    line = ["evaluate", str(tmp_path / "tiny"), "--paths", str(tmp_path / "sheep.txt"), "--examples", "4"]
    assert main([*line, "--record"]) == 0
    card = (tmp_path / "tiny" / "README.md").read_text()
    assert "- data: novel.txt: licence unknown to mull\n" in card
    assert [text for text in card.splitlines() if "sheep" in text] == [f"`{' '.join(['mull', *line])}`"]
    (tmp_path / "tiny" / "training.yaml").unlink()
    assert main([*line, "--record"]) == 0
    assert "- data: unknown\n" in (tmp_path / "tiny" / "README.md").read_text()


def test_results_are_shown_and_written_where_they_cannot_be_kept(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards a long evaluation whose record fails at the end, as on a full disk: one line, and no result is lost."""

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "tiny")

    monkeypatch.setattr("mull.training.measuring.keep_results", full)
    line = ["evaluate", str(exported), "--examples", "4", "--iterations", "1,3", "--output", str(tmp_path / "found")]
    capsys.readouterr()
    assert main([*line, "--record", "--json"]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("mull: error: tiny: No space left") and said.err.count("\n") == 1
    assert len(json.loads(said.out)["rows"]) == 2 and said.out == (tmp_path / "found" / "evaluation.json").read_text()


def test_a_folder_that_cannot_be_written_is_told_before_the_evaluation(
    exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards `evaluate --record` of a folder that is read-only: told at once, and nothing is left in it."""

    def refused(**_: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    files = sorted(exported.iterdir())
    monkeypatch.setattr("mull.training.measuring.evaluate", lambda *_, **__: pytest.fail("it was measured"))
    with monkeypatch.context() as patch:
        patch.setattr("tempfile.TemporaryFile", refused)
        assert main(["evaluate", str(exported), "--examples", "4", "--record"]) == 2
    said = capsys.readouterr().err
    assert f"{exported} cannot be written (Read-only file system): leave --record out" in said
    check_keeping(exported)
    assert sorted(exported.iterdir()) == files
    for name in ("depth.json", "depth.png", "README.md"):  # a folder in the place of a file
        aside = (exported / name).read_bytes()
        (exported / name).unlink()
        (exported / name).mkdir()
        assert main(["evaluate", str(exported), "--examples", "4", "--record"]) == 2
        assert f"{name} is " in capsys.readouterr().err
        (exported / name).rmdir()
        (exported / name).write_bytes(aside)


def test_training_anew_keeps_own_words(exported: Path) -> None:
    """Guards own words and the licence of the weights where a folder is trained anew and exported again."""
    file = exported / "README.md"
    file.write_text(file.read_text().replace("not stated by whoever trained them", "MIT") + "\nOf sheep.\n")
    task = Parity(12)
    data = TaskData(task, batch_size=4, validation_examples=8)
    export(network(task), data, exported, described("Parity", length=12))
    assert file.read_text().endswith("\n\nOf sheep.\n") and "- weights: MIT\n" in file.read_text()


def test_a_card_asks_the_model_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the device: an export reads no weights back, and measuring reads them once; both cards have an answer."""
    data, folder, loads = TaskData(Parity(12), batch_size=4, validation_examples=8), tmp_path / "tiny", []
    monkeypatch.setattr("mull.training.export.load", lambda *place: loads.append(place) or mull.load(*place))
    answers = []
    export(network(data.task), data, folder, described("Parity", length=12))
    assert loads == []
    for _ in range(2):
        lines = (folder / "README.md").read_text().splitlines()
        answers += [line for line in lines if line.startswith("    ")]
        measure(folder, data, [1, 2], "mull train", 4, lambda _: None)
    assert loads == [(folder, "cpu")] and len(answers) == 2 and answers[0] == answers[1]


def test_new_weights_lose_the_picture_of_the_old(exported: Path) -> None:
    mull.save(network(Parity(12)), exported)
    assert not (exported / "depth.png").exists() and not (exported / "depth.json").exists()


@pytest.mark.parametrize(("task", "word"), [(Parity(9), "odd"), (PHop(2, 12, 3, 4), "jumps"), (Addition(2, 1), "sum")])
def test_every_task_says_what_it_is_for(task: Task, word: str) -> None:
    about = TaskData(task, batch_size=2).about()
    assert word in about.purpose and about.purpose.endswith(".") and about.prompt and about.right
    assert task.check(about.prompt, about.right)
    told = asked(network(task), about)
    assert told is not None and told.answer is None  # a model without a tokenizer cannot be asked
    model = network(task, max_length=2)
    model.tokenizer = task.tokenizer
    told = asked(model, about)
    assert told is not None and told.prompt is None  # nor one that cannot read so much


def test_texts_are_told_by_their_names(tmp_path: Path) -> None:
    """Guards the page of a model of text: public corpora have their licence, own files have none that mull knows; no
    file is opened for it."""
    about = TextData(["data/gsm8k-train.jsonl", "data/tinyshakespeare.txt"], ["question"]).about()
    assert "grade-school problems with worked answers and plays of Shakespeare, byte by byte" in about.purpose
    assert about.data == "GSM8K (arXiv 2110.14168), MIT licence; tinyshakespeare, public domain" and about.prompt
    assert "\nmull evaluate . --paths your.txt\n" in model_card("x", network(Parity()).config, None, about)
    own = TextData([str(tmp_path / "novel.txt")]).about()
    assert own.data == "novel.txt: licence unknown to mull" and own.prompt is None and "novel.txt" in own.purpose
