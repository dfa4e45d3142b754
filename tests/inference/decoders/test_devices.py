"""Every way of writing with every family, greedy and drawn, with the model on a second device (tests/elsewhere.py):
nothing is left on the CPU, and what is written is what the CPU writes."""

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from mull.inference.decoders import Decoder
from mull.inference.generate import generate
from mull.models import LanguageModel

LIMIT = 6
MASK = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
DRAWN = {"temperature": 1.0, "top_k": 7, "top_p": 0.95, "min_p": 0.02}


def calls(model: LanguageModel, way: Decoder, device: torch.device) -> Iterator[dict[str, Any]]:
    """Greedy and drawn, by a generator of the CPU and of the model's device; masks from there and from the CPU; every
    option that a decoder may understand."""
    count = LIMIT if model.config.default_iterations else None
    usual = {"iterations": count, "max_new_tokens": 3, "decode": way}
    yield {**usual, "stop_tokens": [3, 5], "attention_mask": MASK}
    yield {**usual, "generator": torch.Generator().manual_seed(1), "attention_mask": MASK.to(device), **DRAWN}
    yield {**usual, "generator": torch.Generator(device).manual_seed(1), "cache_dtype": torch.float32, **DRAWN}
    yield {**usual, "policy": way.policies[-1]}
    yield {**usual, "policy": "shared", "ring": 2}
    if hasattr(model, "start"):
        yield {**usual, "warm_start": True}
    if model.config.routed_layers:
        yield {**usual, "capacity": 0.5}
    if count is not None:
        yield {**usual, "iterations": torch.tensor([2, LIMIT, 3])}


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


def test_every_way_of_writing_runs_elsewhere_and_writes_the_same(
    far: tuple[Decoder, str], make_model: Callable[..., LanguageModel], elsewhere: ModuleType
) -> None:
    """Ids come from the CPU, as a tokenizer gives them. Small models: made-up devices are slow."""
    way, family = far
    layers = {"n_core": 1, "n_coda": 1, "exit_gate": True} if family == "recurrent_depth" else {"n_layers": 2}
    model = make_model(family, **layers)
    ids = torch.randint(11, (3, 5), generator=torch.Generator().manual_seed(0))
    expected = answers(model, way, ids)
    assert len(expected) >= 4
    with elsewhere.second_device():
        found = answers(elsewhere.moved(model), way, ids)
    for (name, tokens, used), (_, there_tokens, there_used) in zip(expected, found, strict=True):
        for here, away in ((tokens, there_tokens), (used, there_used)):
            assert isinstance(away, elsewhere.Elsewhere), f"{name}: left on the CPU"
            assert torch.equal(away.held, here), name
