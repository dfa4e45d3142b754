"""Deep supervision: a state that is carried on over batches, with an answer and an optimizer step for each.

    segment 1   s = R iterations from a new state;            step on the loss of its answer
    segment n   s = R iterations more from detach(s);         step on the loss of its answer

A segment is a training batch, and goes on where it has the same input_ids as the batch before it and that one's loss
was a number; data that gives each batch N times in a row (`repeat: N`) has N segments for each. Thinking for n R
iterations is then trained at the memory and the gradient of R (HRM, arXiv 2506.21734; TRM, arXiv 2510.04871). In
inference nothing changes: since a and then b iterations are a + b iterations, n segments are one run of n R.

The answer that TRM feeds back beside the state is an option of the model here (`answer_feedback`), read out of it
in every iteration, so that nothing but the state is carried.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Carried:
    """What the last training batch was, (B, T), and the state that it ended in, (B, T, D), without its gradient."""

    def __init__(self) -> None:
        self.input_ids: Tensor | None = None
        self.state: Tensor | None = None

    def state_for(self, input_ids: Tensor) -> Tensor | None:
        """The state to go on from; None for a batch that begins anew."""
        if self.input_ids is None or self.state is None:
            return None
        self.input_ids, self.state = self.input_ids.to(input_ids.device), self.state.to(input_ids.device)
        return self.state if torch.equal(self.input_ids, input_ids) else None

    def keep(self, input_ids: Tensor, state: Tensor) -> None:
        """Remember where a batch ended."""
        self.input_ids, self.state = input_ids, state.detach()

    def drop(self) -> None:
        """Forget it: the next batch begins anew."""
        self.input_ids = self.state = None

    def state_dict(self) -> dict[str, Any]:
        return {"input_ids": self.input_ids, "state": self.state}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.input_ids, self.state = saved["input_ids"], saved["state"]


def check_carry(carry: bool, data: object, devices: int) -> None:
    """Raise a ValueError where a state would be carried nowhere, or not be saved. Of data that does not say how often a
    batch comes, nothing is known."""
    if carry and getattr(data, "repeat", None) == 1:
        raise ValueError(
            f"model.carry is true, but {type(data).__name__} gives no batch twice in a row, so no state goes on: set "
            "data.init_args.repeat to the number of segments (of TaskData), or leave carry out"
        )
    if carry and devices > 1:
        raise ValueError(
            f"model.carry is true and there are {devices} devices: the saved state holds what one of them carries; set "
            "trainer.devices to 1"
        )
