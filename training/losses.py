"""What training minimises. Labels are aligned with positions (nothing is shifted); IGNORE positions do not count.

A loss is a mean over the scored positions of one batch of one device, and 0 without gradient where there are none.
Over accumulated batches, and over devices, gradients are averaged as they are: each batch counts alike, however many
positions it scores. (Those of mull's own data have nearly equal numbers.)

    last iteration    L = L_R, the cross entropy after the last iteration
    expected          L = sum_t p(t) L_t - beta H(p), p(t) = lambda_t prod_{j<t} (1 - lambda_j), the last the rest;
                      lambda_t is the sigmoid of the model's exit gate             (Ouro stage I, arXiv 2510.25741)

Shapes: B batch, T positions, V vocabulary, R iterations.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from mull.models import ModelOutput
from mull.models.loop import Iterations
from mull.training.data.task import IGNORE


class Loss(ABC):
    """A loss names the counts it reads answers at, and turns the output into a scalar in nats per scored token."""

    def read_at(self, iterations: Iterations | None) -> Sequence[int]:  # noqa: ARG002
        """Counts at which forward must read answers out, besides the last."""
        return range(0)

    @abstractmethod
    def __call__(self, output: ModelOutput, labels: Tensor) -> Tensor:
        """Scalar loss of an output for labels (B, T)."""


class LastIteration(Loss):
    """Cross entropy after the last iteration."""

    def __call__(self, output: ModelOutput, labels: Tensor) -> Tensor:
        return token_losses(output.logits, labels).sum() / number_scored(labels)


class ExpectedOverIterations(Loss):
    """Cross entropy averaged over the exit gate's distribution, minus an entropy term that keeps it spread out.

    Args:
        entropy_weight: beta, in nats per nat; Ouro uses 0.1, then 0.05.
    """

    def __init__(self, entropy_weight: float = 0.1) -> None:
        self.entropy_weight = entropy_weight

    def read_at(self, iterations: Iterations | None) -> range:
        if not isinstance(iterations, int):
            raise ValueError(
                "the expected loss needs a recurrent model and one iteration count for the whole batch; "
                "use the Fixed, LogNormalPoisson or LinearCurriculum sampler"
            )
        return range(1, iterations + 1)

    def __call__(self, output: ModelOutput, labels: Tensor) -> Tensor:
        readings = [output.readings[count] for count in sorted(output.readings)]
        if output.exit_logit is None or not readings:
            raise ValueError("the expected loss needs a model with exit_gate: true, and a sampler of iterations")
        exit_logits = torch.stack([r.exit_logit for r in readings if r.exit_logit is not None])  # (R, B, T)
        log_p = exit_log_distribution(exit_logits)
        losses = torch.stack([token_losses(r.logits, labels) for r in readings])  # (R, B, T)
        expected = (log_p.exp() * (losses + self.entropy_weight * log_p)).sum(dim=0)  # -beta H = beta sum p log p
        return (expected * scored(labels)).sum() / number_scored(labels)


def exit_log_distribution(exit_logits: Tensor) -> Tensor:
    """log p(t) along the first axis, (R, ...) -> (R, ...): lambda_t is the chance to exit at t, given none before."""
    exit_logits = exit_logits.float()  # first: rounded to bf16, stay and leave would not add up to 1
    stay = F.logsigmoid(-exit_logits)
    survived = torch.cat([torch.zeros_like(stay[:1]), stay[:-1].cumsum(dim=0)])
    leave = torch.cat([F.logsigmoid(exit_logits[:-1]), torch.zeros_like(stay[:1])])  # the last takes the rest
    return survived + leave


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy in nats, (B, T); 0 where nothing is scored."""
    by_position = rearrange(logits, "b t v -> (b t) v").float()
    flat = F.cross_entropy(by_position, labels.flatten(), ignore_index=IGNORE, reduction="none")
    return flat.view_as(labels)


def scored(labels: Tensor) -> Tensor:
    """(B, T) bool: the positions that count."""
    return labels != IGNORE


def number_scored(labels: Tensor) -> Tensor:
    """What a sum over the scored positions is divided by: their number, and 1 where there are none."""
    return scored(labels).sum().clamp(min=1)
