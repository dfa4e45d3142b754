"""How much a batch counts in its optimizer step: by the positions that it scores, so that a step is a mean over all of
them, as if its batches, of all accumulation and of all devices, were one.

A loss is a mean over the n positions that its batch scores, and the trainer averages gradients over A accumulated
batches and W devices alike. So the loss of each batch is weighted by n / m, m the mean over the devices of the step's
first batches, and the gradient of the step is multiplied by A W m / N, N the scored positions of the whole step. Both
are 1, and nothing is computed, where all batches score alike, which is the case with most data.
"""

from __future__ import annotations

from collections.abc import Callable


class Weighting:
    """The batches of the present optimizer step.

    Args:
        together: adds up a number over all devices; all of them call it at the same time.
    """

    def __init__(self, together: Callable[[float], float]) -> None:
        self.together = together
        self.mean, self.scored, self.batches = 0.0, 0, 0

    def weight(self, scored: int, devices: int) -> float:
        """The weight of the loss of one more batch, which scores so many positions."""
        if not self.batches:
            self.mean = max(1.0, self.together(scored) / devices)
        self.batches += 1
        self.scored += scored
        return scored / self.mean

    def factor(self, accumulated: int, devices: int) -> float:
        """What the gradient of the step, a mean over accumulated batches and devices, is multiplied by; the next batch
        is the first of the next step."""
        mean, scored, batches = self.mean, self.scored, self.batches
        self.mean, self.scored, self.batches = 0.0, 0, 0
        if accumulated == batches == 1:
            return 1.0  # m is N / W
        total = self.together(scored)
        return accumulated * devices * mean / total if total else 1.0
