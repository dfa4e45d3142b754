"""docs/trace.md is true: its code runs as it stands, and its pictures show what the text says of them."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from mull.inference.tracing.command import add_options

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs/trace.md").read_text()


@pytest.fixture(scope="module")
def after(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What is there when all blocks have run, on fewer rows, the pictures written elsewhere."""
    folder = tmp_path_factory.mktemp("pictures")
    code = "\n".join(re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL))
    code = code.replace('"checkpoints/', f'"{ROOT}/checkpoints/').replace('"docs/', f'"{folder}/')
    fewer = code.replace("(256, 64)", "(32, 64)").replace("(128, 32)", "(32, 32)")
    assert fewer.count("(32, ") == 2
    found: dict[str, Any] = {"folder": folder}
    exec(compile(fewer, "docs/trace.md", "exec"), found)
    return found


def test_the_pictures_are_made(after: dict[str, Any]) -> None:
    """Guards the pictures that the text shows, and the code of two of them."""
    shown = re.findall(r"!\[.*?\]\((.*?)\)", TEXT)
    assert shown == ["trace-page.png", "trace-length.png", "trace-influence.png"]
    assert all((ROOT / "docs" / name).is_file() for name in shown)
    assert {path.name for path in after["folder"].iterdir()} == {*shown[1:]}


def test_the_solved_length_grows(after: dict[str, Any]) -> None:
    """Guards the first claim: the share of right rows rises from the left, iteration by iteration, past the longest row
    of training, and what is right stays so."""
    right = after["right"]
    solved = [int((row >= 0.95).int().cumprod(0).sum()) for row in right]
    assert solved[0] <= 4 and 10 <= solved[7] <= 18 and 50 <= solved[-1] < 64 and (right[24:, :32] == 1).all()
    assert solved == sorted(solved)


def test_influence_arrives_as_a_front_while_it_is_held(after: dict[str, Any]) -> None:
    """Guards the second: nothing before the patch, the patched positions with it, then later answers turned round, near
    ones first; `flipped` is that of the run in which the states are held."""
    share = after["flipped"].float().mean(0)[:, 1:]  # by iteration, from 1, and bit
    assert (share[:15] == 0).all() and (share[15, :8] == 1).all() and (share[15, 8:] == 0).all()
    assert (share[-1, :20] == 1).all() and share[-1, 31] < 1
    arrival = (share[:, :26] >= 0.5).int().argmax(0)
    assert torch.equal(arrival, arrival.sort().values) and arrival[-1] - arrival[8] >= 6


def test_options_are_those_of_the_command() -> None:
    """Guards the table: every option that the text names is one that there is."""

    class Names(set[str]):
        def add_argument(self, name: str, **_: Any) -> None:
            self.add(name)

    known = Names()
    add_options(known)
    assert set(re.findall(r"(--[a-z][a-z-]+)", TEXT)) <= known and len(known) > 10
