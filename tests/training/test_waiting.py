"""A training step asks its device for numbers a fixed number of times: each time the device has to have finished."""

import traceback
from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import mull
from mull.training.iterations import Fixed
from mull.training.losses import FixedPoint, SeveralIterations
from mull.training.module import TrainingModule

ASKS = ("local_scalar", "nonzero", "masked_select", "unique", "equal.default")  # what needs the values of a tensor


class Asked(TorchDispatchMode):
    """Counts operations whose result the processor waits for, by the place of mull that asks."""

    def __init__(self) -> None:
        super().__init__()
        self.places: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(name in str(func) for name in ASKS):
            inside = [frame for frame in traceback.extract_stack() if "torch" not in frame.filename]
            self.places[f"{inside[-2].filename}:{inside[-2].lineno}"] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("options", "loss"),
    [
        ({"causal": False, "board": True}, SeveralIterations({0.5: 1, 1: 1})),
        ({"convolution": "mlp", "window": 4, "window_heads": 1}, None),
        ({"state_noise": 0.1, "damping": 0.5, "injection": "add"}, FixedPoint()),
    ],
    ids=["board", "local", "noise"],
)
def test_a_step_waits_no_longer_for_more_iterations(options: dict[str, Any], loss: Any) -> None:
    """Guards the speed of a loop on a device, which is given its work ahead; forward, loss and backward together."""

    def places(iterations: int) -> Counter[str]:
        config = mull.RecurrentDepthConfig(vocab_size=7, d_model=16, n_heads=2, max_length=16, **options)
        module = TrainingModule(mull.RecurrentDepthTransformer(config), Fixed(iterations), loss=loss).train()
        module.batch_index = lambda batch_idx: batch_idx  # type: ignore[method-assign]  # there is no trainer
        module.log = lambda *_, **__: None  # type: ignore[assignment, method-assign]
        batch = {name: torch.randint(7, (2, 16)) for name in ("input_ids", "labels")}
        with Asked() as asked:
            module.training_step(batch, 0).backward()
        return asked.places

    few, many = places(2), places(7)
    assert few == many
    assert sum(few.values()) <= 8, few  # half of them torch's own, where it draws the state
