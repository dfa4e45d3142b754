"""A curriculum that waits for the model: the next difficulty enters when the present one is mastered.

    d_1 < d_2 < ... < d_n          the difficulties of the data; the first batches are of d_1 alone
    d_{j+1} enters when, over the last N training batches of difficulty d_j, at least the wanted share was right

The loader makes a batch before the one before it is trained on. What batch i decides therefore takes effect at batch
i + AHEAD, a number that is part of the saved state: a resumed run goes on with the very batches of one that was not
interrupted. Several devices add up what they have seen, so they all decide alike.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from mull.training.data.task import IGNORE

AHEAD = 2  # batch i + 1 may have been made before batch i was answered

Unit = Literal["rows", "tokens"]


class ReachedAccuracy:
    """Lets the next difficulty enter at a share of right answers, and keeps count.

    Args:
        accuracy: the share that lets the next difficulty in, above 0 and at most 1.
        of: what is counted: rows of which every scored token is right, or scored tokens.
        batches: N, training batches of the hardest present difficulty that the share is taken over, the latest ones.
    """

    def __init__(self, accuracy: float = 0.95, of: Unit = "rows", batches: int = 20) -> None:
        if not 0 < accuracy <= 1 or batches < 1:
            raise ValueError(
                "ReachedAccuracy: accuracy must lie above 0 and at most at 1, and batches be at least 1, not "
                f"{accuracy} and {batches}"
            )
        if of not in get_args(Unit):
            raise ValueError(f"of must be one of {', '.join(get_args(Unit))}, not {of!r}")
        self.accuracy, self.of, self.batches = accuracy, of, batches
        self.begin()

    def begin(self) -> None:
        """Begin with the easiest difficulty alone."""
        self.entries: list[int] = []  # the numbers of the batches from which the 2nd, 3rd, ... difficulty is there
        self.latest: list[tuple[int, int]] = []  # right and counted in each of the latest batches of the newest one

    def entered(self, number: int) -> int:
        """How many difficulties there are in training batch `number`, the easiest first."""
        return 1 + sum(number >= first for first in self.entries)

    def count(self, logits: Tensor, labels: Tensor) -> Tensor:
        """How many answers are right, and how many there are: (2,) int64."""
        scored = labels != IGNORE
        right = (logits.argmax(dim=-1) == labels) & scored
        if self.of == "rows":
            right, scored = (right | ~scored).all(dim=1) & scored.any(dim=1), scored.any(dim=1)
        return torch.stack([right.sum(), scored.sum()])

    def observe(self, number: int, right: int, counted: int) -> None:
        """Take in a batch of the newest difficulty; its number decides from where on the next one is there."""
        self.latest = [*self.latest, (right, counted)][-self.batches :]
        total = sum(each for _, each in self.latest)
        if len(self.latest) == self.batches and total and sum(r for r, _ in self.latest) >= self.accuracy * total:
            self.entries.append(number + AHEAD)
            self.latest = []

    def state_dict(self) -> dict[str, Any]:
        return {"entries": list(self.entries), "latest": [list(each) for each in self.latest]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.entries = list(state["entries"])
        self.latest = [(right, counted) for right, counted in state["latest"]]
