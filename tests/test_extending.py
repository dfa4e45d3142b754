"""docs/extending.md is true: its examples are trained, saved, loaded, evaluated and generated with, as they stand."""

import contextlib
import io
import json
import math
import multiprocessing
import os
import re
import shlex
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

import mull
from mull.cli import main

TEXT = (Path(__file__).parents[1] / "docs" / "extending.md").read_text()
CONTRIBUTING = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
EXAMPLES = dict(re.findall(r"```python\n# (\w+)\.py\n(.*?)```", TEXT, re.DOTALL))

EXAMPLE_OF = {  # what can be added, and the file that shows it
    "family": "looped",
    "injection": "gated",
    "rule of inner thinking": "level",
    "exit rule": "turning",
    "decoder": "patient",
    "strategy": "agreeing",
    "scorer": "brief",
    "task": "maximum",
    "sampler of iterations": "schedule",
    "loss": "schedule",
    "optimizer": "nesterov",
}

MINE = """
seed_everything: 0
threads: 1
trainer: {max_steps: 3, accelerator: cpu, val_check_interval: 3, enable_progress_bar: false}
model:
  network:
    class_path: mull.RecurrentDepthTransformer
    init_args: {config: {d_model: 16, n_heads: 2, d_ff: 16, max_length: 32, injection: gated}}
  iterations: {class_path: schedule.Alternating, init_args: {mean: 4}}
  loss: {class_path: schedule.Halfway}
  optimizer: {class_path: nesterov.Nesterov, init_args: {lr: 0.01}}
data:
  class_path: mull.training.data.TaskData
  init_args:
    task: {class_path: maximum.Maximum, init_args: {length: 12}}
    batch_size: 4
    validation_examples: 4
"""
LOOPED = """
seed_everything: 0
threads: 1
trainer: {max_steps: 2, accelerator: cpu, val_check_interval: 2, enable_progress_bar: false}
model:
  network:
    class_path: looped.LoopedTransformer
    init_args: {config: {d_model: 16, n_heads: 2, d_ff: 16, max_length: 64}}
  iterations: {class_path: mull.training.iterations.Fixed, init_args: {mean: 4}}
data:
  class_path: mull.training.data.TaskData
  init_args:
    task: {class_path: mull.training.data.Parity, init_args: {length: 8}}
    batch_size: 4
    validation_examples: 4
"""


ROUTED = LOOPED.replace("looped.LoopedTransformer", "mull.InnerThinkingTransformer").replace(
    "max_length: 64", "max_length: 64, n_layers: 2, rule: level"
)


def kinds(page: str) -> list[str]:
    """The first column of the table of additions of a page."""
    table = re.search(r"\| to add \|.*\n\|[-|]+\n((?:\|.*\n)+)", page)
    assert table
    return [row.split("|")[1].strip() for row in table[1].splitlines()]


def in_folder(folder: Path, commands: tuple[str, ...]) -> tuple[list[int], str]:
    """What `run` gives, in the process that is asked."""
    os.chdir(folder)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        return [main(shlex.split(command)) for command in commands], said.getvalue()


def run(folder: Path, *commands: str) -> tuple[list[int], str]:
    """Exit statuses of `mull ...` lines, one after another in one process that begins in the folder, and what they
    print. A fork of this one: what the modules register stays there, and what they import is in memory already."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        return pool.submit(in_folder, folder, commands).result()


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with all examples in files of their own, and three runs that use them."""
    folder = tmp_path_factory.mktemp("mine")
    for name, code in EXAMPLES.items():
        (folder / f"{name}.py").write_text(code)
    (folder / "mine.yaml").write_text(MINE)
    (folder / "looped.yaml").write_text(LOOPED)
    (folder / "routed.yaml").write_text(ROUTED)
    return folder


def test_there_is_an_example_of_each_and_none_is_long() -> None:
    """Guards the promise: every kind of addition of the two tables has a whole example, of at most 40 lines of code,
    and CONTRIBUTING.md names no kind that this page does not."""
    assert {*EXAMPLES} == {*EXAMPLE_OF.values()}
    assert set(kinds(TEXT)) == {*EXAMPLE_OF}
    contributing = {kind for row in kinds(CONTRIBUTING) for kind in row.split(", ")}
    assert {kind.removesuffix(" of iterations") for kind in EXAMPLE_OF} == contributing - {"ablation"}  # a few lines
    long = {name: n for name, code in EXAMPLES.items() if (n := len([x for x in code.splitlines() if x.strip()])) > 40}
    assert long == {}


BUILT = (
    "train --plugin gated --plugin maximum --plugin schedule --plugin nesterov --config mine.yaml --output run",
    "evaluate run --plugin gated --plugin maximum --iterations 1,4 --examples 8 --json",
    "generate run --plugin gated --plugin turning --exit turning:0.1 --prompt '3 1 4'",
    "generate run --plugin gated --plugin patient --decode patient:2:0.9 --prompt '3 1 4'",
    "inspect run --plugin gated",
)
FAMILY = (
    "train --plugin looped --config looped.yaml --output family",
    "evaluate family --plugin looped --iterations 1,4 --examples 8 --json",
    "generate family --plugin looped --exit latent:0.1 --iterations 8 --prompt '1 0 1'",
    "generate family --plugin looped --decode speculate:2:3 --iterations 8 --prompt '1 0 1'",
)
RULE = (
    "train --plugin level --config routed.yaml --output routed",
    "evaluate routed --plugin level --iterations 1,4 --examples 8 --json",
    "generate routed --plugin level --prompt '1 0 1'",
)


@pytest.fixture(scope="module")
def done(mine: Path) -> tuple[Path, list[int]]:
    """The same with both runs, in `run` and `family`, and the exit statuses of what was done with them, in one process
    that begins in the folder."""
    return mine, run(mine, *BUILT, *FAMILY)[0]


def test_injection_task_sampler_loss_optimizer_exit_and_decoder(done: tuple[Path, list[int]]) -> None:
    """Guards the way of a stranger's additions through train, evaluate and generate, named by --plugin."""
    mine, statuses = done
    assert statuses[: len(BUILT)] == [0] * len(BUILT)
    assert json.loads((mine / "run" / "config.json").read_text())["injection"] == "gated"
    assert {row["difficulty"] for row in json.loads((mine / "run" / "depth.json").read_text())["rows"]} == {12}
    assert (mine / "run" / "README.md").is_file()
    assert "nesterov.Nesterov" in (mine / "run" / "training.yaml").read_text()


def test_a_family(done: tuple[Path, list[int]]) -> None:
    """Guards an own family: trained by class path, saved with a card, loaded, evaluated, decoded in every way."""
    mine, statuses = done
    assert statuses[len(BUILT) :] == [0] * len(FAMILY)
    assert json.loads((mine / "family" / "config.json").read_text())["model_type"] == "looped"


def test_a_rule_of_inner_thinking(mine: Path) -> None:
    """Guards an own rule: trained by its word, saved, loaded, evaluated and written with; and its folder is refused
    where nobody knows the word."""
    assert run(mine, *RULE)[0] == [0] * len(RULE)
    assert json.loads((mine / "routed" / "config.json").read_text())["rule"] == "level"
    assert run(mine, "generate routed --prompt '1 0 1'")[0] == [2]


@pytest.fixture(scope="module")
def tiny(mine: Path) -> str:
    """The name of a folder whose model knows chains, and answers 1 with an end."""
    words = ["<chain>", "</think>", "1", "<end>", "<unk>"]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    config = mull.TransformerConfig(vocab_size=5, d_model=8, n_heads=2, n_layers=1, max_length=16, stop_tokens=(3,))
    mull.save(mull.Transformer(config), mine / "tiny", tokenizer=tokenizer)
    return "tiny"


def test_a_strategy(mine: Path, tiny: str) -> None:
    """Guards an own strategy: known to the command by its module, and stopped by agreement: of a model that always
    answers alike it draws `lead` texts and no more."""
    command = f"solve {tiny} --plugin agreeing --prompt 1 --strategy agreeing:9:2 --temperature 0 --json"
    statuses, said = run(mine, command)
    found = json.loads(said)
    assert statuses == [0] and found["strategy"] == "agreeing,most=9,lead=2" and len(found["trace"]) == 2


def test_a_scorer(mine: Path, tiny: str) -> None:
    """Guards an own scorer: known to a strategy by its word, with its option, and asked about every text."""
    command = f"solve {tiny} --plugin brief --prompt 1 --strategy best_of_n:6,scorer=brief:9 --temperature 1 --json"
    statuses, said = run(mine, command)
    found = json.loads(said)
    assert statuses == [0] and found["scorer"] == "brief" and len(found["trace"]) == 6
    for event in found["trace"]:
        assert event["score"] == pytest.approx(math.exp(-len(event["text"].split()) / 9))


def test_without_the_word_a_folder_runs_nothing(done: tuple[Path, list[int]]) -> None:
    """Guards that a checkpoint is data: what it names is not imported, and the refusal says what to do."""
    mine, _ = done
    mark = "\nopen('imported', 'w').close()\n"
    (mine / "looped.py").write_text(EXAMPLES["looped"] + mark)
    lines = ("inspect family", "evaluate family --examples 8", "generate family --prompt '1 0 1'")
    assert run(mine, *lines)[0] == [2, 2, 2]
    assert not (mine / "imported").exists()
