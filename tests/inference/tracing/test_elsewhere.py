"""A trace on another device: nothing is left on the CPU, and the numbers are those of the CPU. The second device is the
one of tests/elsewhere.py."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from mull.inference.tracing import Noise, Patch, difference
from mull.inference.tracing.trace import trace
from mull.inference.tracing.view import common_plane, plain, view
from mull.models import IteratedModel, LanguageModel


def everything(model: LanguageModel, ids: Tensor) -> tuple[list[Any], Any]:
    """Every tensor that tracing gives, and what the page shows of them."""
    both = ("coda", "logit")
    found = trace(model, ids, 4, lenses=both, keep_states=True, capacity=0.5 if model.config.routed_layers else None)
    traces, more = [found, trace(model, [[1, 2, 3], [4, 5]], 3, read_at=[2])], list[Any]()
    if isinstance(model, IteratedModel):
        traces += [trace(model, ids, 4, exits=["latent:0.2", "kl:0.01"], generator=torch.Generator().manual_seed(1))]
        changes = [Patch.of(found, [1, 3], 1, 2), Noise(3, 0.1, [2]), Noise(2, 0.1)]
        traces += [trace(model, ids, 4, patch=changes, keep_states=True)]
        more += vars(difference(found, trace(model, ids, 4, lenses=both, patch=changes, keep_states=True))).values()
    for each in traces:
        more += [*vars(each).values(), *each.exits.values()]
        more += [tensor for answers in each.answers.values() for tensor in vars(answers).values()]
    shown = [plain(view("run", each, model, common_plane(traces)), digits=5) for each in traces]
    return [tensor for tensor in more if isinstance(tensor, Tensor)], shown


@pytest.mark.parametrize("family", ["recurrent", "inner_thinking"])
def test_a_trace_elsewhere(family: str, make_model: Callable[..., LanguageModel], elsewhere: ModuleType) -> None:
    """Guards devices: each tensor is on the model's, with the CPU's numbers; the page gets them all the same."""
    ids = torch.randint(11, (2, 6), generator=torch.Generator().manual_seed(0))
    expected, seen = everything(make_model(family), ids)
    with elsewhere.second_device():
        found, shown = everything(elsewhere.moved(make_model(family)), ids)
    assert len(found) == len(expected) > 30
    for there, here in zip(found, expected, strict=True):
        assert isinstance(there, elsewhere.Elsewhere)
        torch.testing.assert_close(there.held, here, rtol=1e-5, atol=1e-6, equal_nan=True)
    for one, other in zip(shown, seen, strict=True):
        assert one["answers"]["coda"]["tokens"] == other["answers"]["coda"]["tokens"] and one.keys() == other.keys()
