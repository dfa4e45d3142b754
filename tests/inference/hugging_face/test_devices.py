"""Models of transformers on a second device (tests/elsewhere.py): nothing is left on the CPU."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

IDS = torch.tensor([[0, 0, 3, 1, 4], [0, 5, 9, 2, 6], [5, 3, 5, 8, 9]])
MASK = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 1, 1], [1, 1, 1, 1, 1]])


@pytest.mark.parametrize("family", ["recurrent", "inner_thinking", "transformer"])
def test_calls_and_answers(wrapped: Callable[..., Any], elsewhere: ModuleType, family: str) -> None:
    """Guards forward with labels, with a mask, behind a cache and under a rule; generate with beams and full rows."""
    model = wrapped(family, **({} if family == "inner_thinking" else {"max_length": 9}))
    rules: list[dict[str, Any]] = [{}, {"exit": "latent:0.7"}] if family == "recurrent" else [{}]

    def say(m: Any) -> list[Any]:
        ids, mask = IDS.to(m.device), MASK.to(m.device)
        said = [m(ids, labels=ids, attention_mask=mask, output_hidden_states=True, **rule) for rule in rules]
        first = m(ids, attention_mask=mask, use_cache=True)
        first.cache.reorder_cache(torch.tensor([2, 0, 1], device=m.device))
        said += [first, m(ids[:, :2], cache=first.cache)]
        found = [tensor for out in said for tensor in (out.loss, out.logits, out.iterations) if tensor is not None]
        for options in ({}, {"num_beams": 2}, {"use_cache": False}, *rules[1:]):
            found.append(m.generate(ids, attention_mask=mask, max_new_tokens=6, **options))
        return found

    here = say(model)
    with elsewhere.second_device():
        there = say(elsewhere.moved(model))
    for one, other in zip(here, there, strict=True):
        assert isinstance(other, elsewhere.Elsewhere)
        torch.testing.assert_close(other.held, one, rtol=1e-9, atol=1e-9)
