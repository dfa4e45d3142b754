"""`mull lm-eval`: the shipped tasks rise with depth, files of a user work without a network, a mistake is one line."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import mull
from mull.cli import main
from mull.inference.measure.evaluate import evaluate
from mull.training.data import Parity

pytest.importorskip("lm_eval")
import datasets
import huggingface_hub

ROOT = Path(__file__).parents[3]
TASKS = ROOT / "configs" / "lm-eval"
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: {kind}
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
{more}
"""


@pytest.fixture(autouse=True)
def alone(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, and no cache but the test's own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
    for module in (datasets.config, huggingface_hub.constants):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", True)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `tasks` in another working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tasks").mkdir()
    return tmp_path / "tasks"


def summary(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["lm-eval", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    status = main(["lm-eval", *arguments])
    lines = capsys.readouterr().err.strip().splitlines()
    assert status == 2 and len(lines) == 1 and lines[0].startswith("mull: error: "), lines
    return lines[0]


@pytest.mark.usefixtures("folder")
def test_the_shipped_tasks_rise_with_depth(capsys: pytest.CaptureFixture[str]) -> None:
    """Guards the table of docs/lm-eval.md: chance at 1 iteration, a little more at 4, all right at 16, in choosing as
    in writing; and the files: the harness's own results of each count, and a summary."""
    command = ["lm-eval", "parity", "--tasks", "parity_choice,parity_answer", "--iterations", "1,4,16"]
    assert main([*command, "--output", "out"]) == 0
    captured = capsys.readouterr()
    assert captured.err == "" and "iterations across" in captured.out
    lines = [line for line in captured.out.splitlines() if "parity_" in line]
    assert len(lines) == 2 and all("0.507±0.058" in line and "1.000±0.000" in line for line in lines)
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "results_1.json", "results_16.json", "results_4.json", "summary.json"
    ]  # fmt: skip
    found = json.loads(Path("out/summary.json").read_text())
    by_task: dict[str, list[float]] = {}
    for row in found["rows"]:
        by_task.setdefault(row["metric"], []).append(row["value"])
    assert set(by_task) == {"acc", "exact_match"}
    for values in by_task.values():
        assert values[0] < values[1] < values[2] == 1.0
    deepest = json.loads(Path("out/results_16.json").read_text())
    assert deepest["results"]["parity_choice"]["acc,none"] == 1.0
    assert deepest["n-samples"]["parity_choice"]["effective"] == 75
    assert deepest["config"]["model"] == "mull" and deepest["config"]["model_args"].endswith("iterations=16")


def test_the_rows_of_the_shipped_tasks_are_test_items() -> None:
    """Guards parity.jsonl: test items of the task, which training never scores, made from their seed."""
    task = Parity()
    items = [
        dict(zip(("bits", "answer"), task.prompt("test", 0, index, length), strict=True))
        for length in (8, 16, 24)
        for index in range(task.available("test", 0, 32, length))
    ]
    assert [json.loads(line) for line in (TASKS / "parity.jsonl").read_text().splitlines()] == items
    assert all(task.check(item["bits"], item["answer"]) for item in items)


def test_a_users_text_says_what_evaluate_says(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards a task of one's own, YAML beside JSONL, found from another folder: bits per byte by depth are those of
    mull's own evaluation of the text; --limit leaves the other text out."""
    text = "How many clips did Natalia sell altogether in April and May? Seventy-two of them."
    rows = [{"text": text}, {"text": "Left out."}]
    (folder / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    metrics = "metric_list: [{metric: bits_per_byte}]"
    (folder / "own.yaml").write_text(
        TASK.format(name="own", data="own.jsonl", kind="loglikelihood_rolling", more=metrics)
    )
    found = summary(
        ["text", "--tasks", "own", "--include-path", "tasks", "--iterations", "1,4", "--limit", "1"], capsys
    )
    ids = torch.tensor([[256, *text.encode()]])
    model = mull.load("text")
    results = evaluate(model, {None: [(ids[:, :-1], ids[:, 1:])]}, [1, 4], bytes_per_token=1.0)
    assert [(row["iterations"], row["metric"]) for row in found["rows"]] == [(1, "bits_per_byte"), (4, "bits_per_byte")]
    for row, result in zip(found["rows"], results, strict=True):
        assert row["value"] == pytest.approx(result.bits_per_byte, rel=1e-6) and row["stderr"] is None
        assert row["examples"] == 1 and row["higher_is_better"] is False
    assert math.isfinite(found["rows"][0]["value"]) and found["rows"][0]["value"] > found["rows"][1]["value"]


def test_worked_examples_are_the_same_at_every_depth(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards --num-fewshot and --seed: all depths read the same contexts, another seed other ones; and an exit rule
    says how long positions thought."""
    from mull.inference.harness.model import MullLM

    seen: list[list[tuple[str, str]]] = []
    scores = MullLM.loglikelihood

    def seeing(self: MullLM, requests: list[Any], disable_tqdm: bool = False) -> Any:
        seen.append([request.args for request in requests])
        return scores(self, requests, disable_tqdm)

    monkeypatch.setattr(MullLM, "loglikelihood", seeing)
    (folder / "shots.yaml").write_text(
        f"include: {TASKS / 'parity_choice.yaml'}\ntask: shots\nfewshot_split: test\nfewshot_delimiter: ' '\n"
        f"dataset_kwargs: {{data_files: {{test: {TASKS / 'parity.jsonl'}}}}}\n"
    )
    asked = ["parity", "--tasks", "shots", "--include-path", "tasks", "--num-fewshot", "2", "--limit", "6"]
    more = ["--iterations", "1,4", "--exit", "latent:0.5"]
    found = summary([*asked, *more], capsys)
    summary([*asked, *more, "--seed", "1"], capsys)
    assert seen[0] == seen[1] != seen[2] == seen[3] and len(seen[0]) == 12
    assert seen[0][0][0].count("odd") + seen[0][0][0].count("even") == 2
    assert [row["num_fewshot"] for row in found["rows"]] == [2, 2]
    used = {row["iterations"]: row["mean"] for row in found["mean_iterations"]}
    assert used[1] == 1 < used[4] < 4


def test_groups_and_patterns(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards names that mean several tasks: a group has a row of its own, and * is any text."""
    (folder / "group.yaml").write_text(
        "group: both\ntask: [parity_choice, twin]\naggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
    )
    (folder / "twin.yaml").write_text(
        f"include: {TASKS / 'parity_choice.yaml'}\ntask: twin\n"
        f"dataset_kwargs: {{data_files: {{test: {TASKS / 'parity.jsonl'}}}}}\n"
    )
    asked = ["parity", "--include-path", "tasks", "--limit", "5", "--iterations", "4"]
    group = summary([*asked, "--tasks", "both"], capsys)["rows"]
    assert {row["task"]: row["examples"] for row in group} == {"parity_choice": 5, "twin": 5, "both": 10}
    assert len({row["value"] for row in group}) == 1 and {row["iterations"] for row in group} == {4}
    pattern = summary([*asked, "--tasks", "parity_c*,twi?"], capsys)["rows"]
    assert [row["task"] for row in pattern] == ["parity_choice", "twin"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--tasks", "parity_choise"], "there is no task parity_choise in tasks; there is parity_choice"),
        (["--tasks", "broken"], "broken.yaml cannot be read"),
        (["--tasks", "far"], "task far needs data that is neither here nor to be had"),
        (["--tasks", "lost"], "task lost cannot be loaded (FileNotFoundError: Unable to find"),
        (["--tasks", "field"], "unexpected keyword argument 'doc_to_texts'"),
        (["--tasks", ","], "--tasks ',' names no task"),
        (["--tasks", "parity_choice", "--iterations", "0"], "integers from 1 to 1,000,000, as 1,2,4; value: '0'"),
        (["--tasks", "parity_choice", "--include-path", "nowhere"], "there is no folder nowhere of tasks"),
        (["--tasks", "parity_choice", "--output", "tasks/broken.yaml"], "is a file; name a folder with --output"),
        (["--tasks", "parity_choice", "--exit", "boredom:1"], "boredom"),
        (["--tasks", "parity_choice", "--capacity", "0.5"], "no routed passes"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], says: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards what a user may get wrong: names, files of tasks, data that is elsewhere, counts and places."""
    (folder / "broken.yaml").write_text("task: [broken\n")
    text = TASK.format(name="lost", data="lost.jsonl", kind="loglikelihood", more="")
    (folder / "lost.yaml").write_text(text)
    (folder / "field.yaml").write_text(text.replace("lost", "field").replace("doc_to_text:", "doc_to_texts:"))
    (folder / "far.yaml").write_text(text.replace("task: lost", "task: far").replace("path: json", "path: no/such"))
    assert says in fails(["parity", "--include-path", "tasks", *arguments], capsys)


def test_what_a_task_does_wrong_when_it_is_asked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards mistakes of a task's file that its loading does not show: one line, and none for a mistake of mull's own,
    which is to be seen whole."""
    from mull.inference.harness.scoring import Scorer

    (folder / "bare.jsonl").write_text('{"text": "a"}\n')
    (folder / "bare.yaml").write_text(TASK.format(name="bare", data="bare.jsonl", kind="multiple_choice", more=""))
    asked = ["text", "--include-path", "tasks", "--iterations", "1", "--tasks"]
    assert main(["lm-eval", *asked, "bare"]) == 2
    warning, error = capsys.readouterr().err.strip().splitlines()
    assert "doc_to_choice was called but not set" in warning
    assert error == "mull: error: lm-eval cannot run bare (TypeError): mend the task's file"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(TypeError, match="of mull"):
        patch.setattr(Scorer, "score", broken)
        main(["lm-eval", *asked[:1], "--tasks", "parity_choice", "--limit", "1"])


def broken(*_: Any, **__: Any) -> Any:
    raise TypeError("of mull")


def test_the_python_of_the_page_runs(folder: Path) -> None:
    """Guards docs/lm-eval.md: its task and its Python, as they stand, at depths of their own."""
    page = (ROOT / "docs" / "lm-eval.md").read_text()
    (task,), (code,) = (re.findall(rf"```{kind}\n(.*?)```", page, re.DOTALL) for kind in ("yaml", "python"))
    (folder / "mine.yaml").write_text(task)
    rows = [{"question": "Tom has 3", "choices": [" apples", " clips and"], "answer": at} for at in (0, 1)]
    (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found: dict[str, Any] = {}
    exec(compile(code, "docs/lm-eval.md", "exec"), found)
    values = {count: results["results"]["mine"]["acc,none"] for count, results in found["results"].items()}
    assert values == {1: 0.5, 4: 0.5, 16: 0.5}
    first, second, third = (results["samples"]["mine"][0]["filtered_resps"] for results in found["results"].values())
    assert first != second != third


def test_folders_that_are_no_model_for_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards the refusal of a model whose order is not causal, and of a folder without a tokenizer."""
    assert "causal: false" in fails(["sudoku", "--tasks", "parity_choice"], capsys)
    config = mull.RecurrentDepthConfig(vocab_size=6, d_model=8, n_heads=2)
    mull.save(mull.RecurrentDepthTransformer(config), tmp_path / "bare")
    assert "tokenizer.json is missing" in fails([str(tmp_path / "bare"), "--tasks", "parity_choice"], capsys)


def test_without_lm_eval_the_command_says_how_to_get_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mull.inference.harness.command.find_spec", lambda _: None)
    assert "pip install 'mull[eval]'" in fails(["parity", "--tasks", "parity_choice"], capsys)
