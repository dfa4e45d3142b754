"""Every way of writing with every family, greedy and drawn, with the model on a second device (tests/elsewhere.py):
nothing is left on the CPU, and what is written is what the CPU writes."""

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from mull.inference.decoders import Decoder
from mull.inference.generate import generate
from mull.models import LanguageModel

LIMIT = 6
MASK = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
DRAWN = {"temperature": 1.0, "top_k": 7, "top_p": 0.95, "min_p": 0.02}


def calls(model: LanguageModel, way: Decoder, device: torch.device) -> Iterator[dict[str, Any]]:
    """Greedy and drawn, by a generator of the CPU and of the model's device; prompts, masks and counts from there and
    from the CPU; every option that the decoder understands."""
    count = LIMIT if model.config.default_iterations else None
    usual = {"iterations": count, "max_new_tokens": 5, "decode": way}
    yield usual
    yield {**usual, "stop_tokens": [3, 5], "attention_mask": MASK}
    yield {**usual, "attention_mask": MASK.to(device)}
    yield {**usual, "generator": torch.Generator().manual_seed(1), "attention_mask": MASK, **DRAWN}
    yield {**usual, "generator": torch.Generator(device).manual_seed(1), "attention_mask": MASK, **DRAWN}
    yield {**usual, "cache_dtype": torch.float32}
    options = {"warm_start": hasattr(model, "start"), "capacity": bool(model.config.routed_layers)}
    yield from ({**usual, name: {"warm_start": True, "capacity": 0.5}[name]} for name in options if options[name])
    if count is not None:
        counts = torch.tensor([2, LIMIT, 3])
        yield from ({**usual, "iterations": each} for each in (counts, counts.to(device)))
    for policy in way.policies:
        yield {**usual, "policy": policy, "ring": 2 if policy == "shared" and "ring" in way.understands else 1}


def answers(model: LanguageModel, way: Decoder, ids: Tensor) -> list[tuple[str, Tensor, Tensor]]:
    found = []
    for call in calls(model, way, model.device):
        named = ", ".join(f"{name}={value}" for name, value in call.items() if not isinstance(value, Tensor))
        try:
            said = generate(model, ids, **call)
        except ValueError as error:  # an option that this decoder does not understand
            assert "understand" in str(error) or "one count of iterations" in str(error) or "policy" in str(error), call
            continue
        found.append((named, said.tokens, said.iterations))
    return found


@pytest.mark.parametrize("prompt_is_there", [False, True])
def test_every_way_of_writing_runs_elsewhere_and_writes_the_same(
    model: LanguageModel, way: Decoder, elsewhere: ModuleType, prompt_is_there: bool
) -> None:
    """Ids may come from the CPU, as a tokenizer gives them, or lie on the model's device already."""
    ids = torch.randint(11, (3, 5), generator=torch.Generator().manual_seed(0))
    expected = answers(model, way, ids)
    assert len(expected) >= 6
    with elsewhere.second_device():
        there = elsewhere.moved(model)
        found = answers(there, way, elsewhere.Elsewhere(ids) if prompt_is_there else ids)
    for (name, tokens, used), (_, there_tokens, there_used) in zip(expected, found, strict=True):
        for here, away in ((tokens, there_tokens), (used, there_used)):
            assert isinstance(away, elsewhere.Elsewhere), f"{name}: left on the CPU"
            assert torch.equal(away.held, here), name
