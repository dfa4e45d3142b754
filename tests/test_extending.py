"""docs/extending.md is true: its examples are trained, saved, loaded, evaluated and generated with, as they stand."""

import contextlib
import io
import json
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
EXAMPLES = dict(re.findall(r"```python\n# (\w+)\.py\n(.*?)```", TEXT, re.DOTALL))

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
    """A working directory with all examples in files of their own, and two runs that use them."""
    folder = tmp_path_factory.mktemp("mine")
    for name, code in EXAMPLES.items():
        (folder / f"{name}.py").write_text(code)
    (folder / "mine.yaml").write_text(MINE)
    (folder / "looped.yaml").write_text(LOOPED)
    return folder


def test_there_is_an_example_of_each_and_none_is_long() -> None:
    """Guards the promise: every kind of addition has a whole example, of at most 40 lines of code."""
    assert {*EXAMPLES} == {"looped", "gated", "turning", "patient", "agreeing", "maximum", "schedule"}
    long = {name: n for name, code in EXAMPLES.items() if (n := len([x for x in code.splitlines() if x.strip()])) > 40}
    assert long == {}


BUILT = (
    "train --plugin gated --plugin maximum --plugin schedule --config mine.yaml --output run",
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


@pytest.fixture(scope="module")
def done(mine: Path) -> tuple[Path, list[int]]:
    """The same with both runs, in `run` and `family`, and the exit statuses of what was done with them, in one process
    that begins in the folder."""
    return mine, run(mine, *BUILT, *FAMILY)[0]


def test_injection_task_sampler_loss_exit_and_decoder(done: tuple[Path, list[int]]) -> None:
    """Guards the way of a stranger's additions through train, evaluate and generate, named by --plugin."""
    mine, statuses = done
    assert statuses[: len(BUILT)] == [0] * len(BUILT)
    assert json.loads((mine / "run" / "config.json").read_text())["injection"] == "gated"
    assert {row["difficulty"] for row in json.loads((mine / "run" / "depth.json").read_text())["rows"]} == {12}
    assert (mine / "run" / "README.md").is_file()


def test_a_family(done: tuple[Path, list[int]]) -> None:
    """Guards an own family: trained by class path, saved with a card, loaded, evaluated, decoded in every way."""
    mine, statuses = done
    assert statuses[len(BUILT) :] == [0] * len(FAMILY)
    assert json.loads((mine / "family" / "config.json").read_text())["model_type"] == "looped"


def test_a_strategy(mine: Path) -> None:
    """Guards an own strategy: known to the command by its module, and stopped by agreement: of a model that always
    answers alike it draws `lead` texts and no more."""
    words = ["<chain>", "</think>", "1", "<end>", "<unk>"]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    config = mull.TransformerConfig(vocab_size=5, d_model=8, n_heads=2, n_layers=1, max_length=16, stop_tokens=(3,))
    mull.save(mull.Transformer(config), mine / "tiny", tokenizer=tokenizer)
    command = "solve tiny --plugin agreeing --prompt 1 --strategy agreeing:9:2 --temperature 0 --json"
    statuses, said = run(mine, command)
    found = json.loads(said)
    assert statuses == [0] and found["strategy"] == "agreeing,most=9,lead=2" and len(found["trace"]) == 2


def test_without_the_word_a_folder_runs_nothing(done: tuple[Path, list[int]]) -> None:
    """Guards that a checkpoint is data: what it names is not imported, and the refusal says what to do."""
    mine, _ = done
    mark = "\nopen('imported', 'w').close()\n"
    (mine / "looped.py").write_text(EXAMPLES["looped"] + mark)
    lines = ("inspect family", "evaluate family --examples 8", "generate family --prompt '1 0 1'")
    assert run(mine, *lines)[0] == [2, 2, 2]
    assert not (mine / "imported").exists()
