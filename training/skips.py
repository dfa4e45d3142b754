"""Steps that are not taken: one whose loss or gradient is no number changes nothing, and is counted.

A single bad batch need not end a run of days: the weights and the optimizer stay as they are, and the next batch is
another one. Three such steps in a row are no accident, and end it. The counts are part of the resumable state.
"""

from __future__ import annotations

from typing import Any

LIMIT = 3  # steps in a row that are skipped: the last of them ends the run
APART = 100  # steps between two warnings


class NonFiniteLossError(RuntimeError):
    """Several steps in a row had a loss or a gradient that is no finite number; the weights are those before them."""


class Skips:
    """The skipped steps of a run.

    Attributes:
        total: all of them.
        in_a_row: those since the last step that was taken.
        reason: why the present step is to be skipped; None so far.
    """

    def __init__(self) -> None:
        self.total, self.in_a_row = 0, 0
        self.told: int | None = None  # the step that was last warned of
        self.reason: str | None = None

    def skip(self, step: int) -> str | None:
        """Count the present step as skipped; return a warning where it is time for one.

        Raises:
            NonFiniteLossError: it is one too many.
        """
        reason, self.reason = self.reason, None
        self.total, self.in_a_row = self.total + 1, self.in_a_row + 1
        if self.in_a_row >= LIMIT:
            raise NonFiniteLossError(f"{reason} at step {step}, and {LIMIT} steps in a row are skipped")
        if self.told is not None and step - self.told < APART:
            return None
        self.told = step
        return f"step {step} is skipped: {reason}; the weights stay as they are"

    def take(self) -> None:
        """Count the present step as taken."""
        self.in_a_row = 0

    def begun(self, steps: int) -> bool:
        """Whether the last of so many steps is the first that was skipped after a good one."""
        return self.in_a_row == 1 and self.total < steps

    def state(self) -> dict[str, Any]:
        return {"total": self.total, "in_a_row": self.in_a_row, "told": self.told}

    def restore(self, state: dict[str, Any]) -> None:
        self.total, self.in_a_row, self.told = state["total"], state["in_a_row"], state["told"]
