"""How much a batch counts in its optimizer step: by the positions that it scores, so that a step is a mean over all of
them, as if its batches, of all accumulation and of all devices, were one.

A loss is a mean over the n positions that its batch scores, and the trainer averages gradients over A accumulated
batches and W devices alike. So the loss of each batch is weighted by n / m, m the mean over the devices of the step's
first batches, and the gradient of the step is multiplied by A W m / N, N the scored positions of the whole step. Both
are 1, and nothing is computed, where all batches score alike, which is the case with most data.
"""

from __future__ import annotations


class Weighting:
    """The batches of the present optimizer step."""

    def __init__(self) -> None:
        self.mean, self.total, self.batches = 1.0, 0, 0

    def weight(self, scored: int, total: int, devices: int) -> float:
        """The weight of the loss of one more batch.

        Args:
            scored: positions that it scores on this device.
            total: positions that all devices score in their batches of the same number.
            devices: how many devices there are.
        """
        if not self.batches:
            self.mean = max(1.0, total / devices)
        self.batches += 1
        self.total += total
        return scored / self.mean

    def factor(self, accumulated: int, devices: int) -> float:
        """What the gradient of the step, a mean over accumulated batches and devices, is multiplied by; the next batch
        is the first of the next step."""
        mean, total, batches = self.mean, self.total, self.batches
        self.mean, self.total, self.batches = 1.0, 0, 0
        if accumulated == batches == 1 or not total:
            return 1.0  # m is N / W, or nothing is learned
        return accumulated * devices * mean / total
