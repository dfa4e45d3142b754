"""docs/hugging-face.md is true: its code runs as it stands, and says what mull says."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import mull

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs/hugging-face.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture(scope="module")
def after() -> dict[str, Any]:
    """What is there when all blocks have run."""
    pytest.importorskip("peft")
    found: dict[str, Any] = {}
    code = "\n".join(BLOCKS).replace('"checkpoints/', f'"{ROOT}/checkpoints/')
    exec(compile(code, "docs/hugging-face.md", "exec"), found)
    return found


def test_the_tokens_are_those_of_mull(after: dict[str, Any]) -> None:
    """Guards the script of fifteen lines: three depths, a padded batch under an exit, a pipeline."""
    assert len([line for line in BLOCKS[0].splitlines() if line]) <= 15
    model, prompt, prompts = mull.load(ROOT / "checkpoints/text"), after["prompt"], after["prompts"]
    for iterations, found in zip((1, 4, 16), after["by_depth"], strict=True):
        assert torch.equal(found, mull.generate(model, prompt, iterations, max_new_tokens=24).tokens)
    wanted = mull.generate(model, prompts, 8, exit="latent:0.1", max_new_tokens=24)
    for row in range(3):
        answer = wanted.new_tokens[row][wanted.iterations[row] > 0]
        assert torch.equal(
            after["batch"][row, wanted.tokens.shape[1] - wanted.iterations.shape[1] :][: len(answer)], answer
        )
    assert after["text"] == prompt + str(mull.generate(model, prompt, 8, max_new_tokens=24).text)
    of_four = mull.generate(model, prompt, 4, max_new_tokens=24).tokens
    assert torch.equal(after["of_config"], of_four) and torch.equal(after["of_model"], of_four)


def test_training_and_adapters(after: dict[str, Any]) -> None:
    """Guards the rest: gradients reach every layer, and the adapter is on the core and nowhere else."""
    assert after["output"].loss.item() > 0
    names = [name for name, parameter in after["adapted"].named_parameters() if parameter.requires_grad]
    assert len(names) == 16 and all(".core." in name and "lora_" in name for name in names)


def test_names_of_modules_are_right() -> None:
    """Guards the tables: every module that the page names is one of the shipped models."""
    names = {
        name
        for folder in ("text", "inner-thinking")
        for name, _ in mull.load(ROOT / "checkpoints" / folder).named_modules()
    }
    table = TEXT.split("| part | modules |")[1].split("\n\n")[0]
    for word in re.findall(r"`([a-z_.N]+)`", table):
        assert any(word.replace("N", "0") in name for name in names) or word == "head", word
