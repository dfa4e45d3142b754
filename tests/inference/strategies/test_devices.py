"""Strategies with the model on a second device (tests/elsewhere.py): nothing is left on the CPU."""

from collections.abc import Callable
from types import ModuleType

import pytest

import mull
from mull.inference.strategies import Solution
from mull.models import LanguageModel


@pytest.mark.parametrize("family", ["recurrent", "transformer"])
@pytest.mark.parametrize("strategy", ["beam:2,width=2,scorer=process", "thought_switching:3:4", "self_backtracking:2"])
def test_a_strategy_writes_the_same_elsewhere(
    elsewhere: ModuleType, make_writer: Callable[..., LanguageModel], family: str, strategy: str
) -> None:
    """Guards reading of unequal lengths, draws, hooks, rewards and exits on a device that is not the CPU."""
    model = make_writer(family, value_head=True)
    exit = "latent:0.3" if family == "recurrent" else None

    def solved(writer: LanguageModel) -> Solution:
        return mull.solve(writer, "1 + 2", strategy, exit=exit, temperature=1.0, max_new_tokens=7, generator=3)

    here = solved(model)
    with elsewhere.second_device():
        there = solved(elsewhere.moved(model))
    assert here.text == there.text and here.cost.read == there.cost.read
    assert [event.text for event in here.trace] == [event.text for event in there.trace]
