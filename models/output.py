"""What a model returns: the same fields in every mode and for every family.

Shapes: B batch, T positions, D model width, V vocabulary.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mull.models.precision import wide


def norm(x: Tensor) -> Tensor:
    """The Euclidean length of the vectors along the last axis, in fp32 or better."""
    return torch.linalg.vector_norm(wide(x), dim=-1)


def relative(change: Tensor, state: Tensor) -> Tensor:
    """The length of a change against that of the state, in fp32 or better; 0 where a state of zeros does not change."""
    return norm(change) / norm(state).clamp(min=1e-12)


def relative_change(state: Tensor, previous: Tensor) -> Tensor:
    """|s - s'| / |s| by position, (B, T), of states (B, T, D)."""
    return relative(state - previous, state)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """An answer read out of one state.

    Attributes:
        logits: (B, T, V).
        exit_logit: (B, T), the exit gate before its sigmoid; None without a gate.
        last_two: the state that was read and the one an iteration before it, (B, T, D) each; None without a loop, after
            the first iteration, and where positions stopped one by one. A row with one iteration, among rows of other
            counts, has its initial state as the earlier one.
        value: (B, T), the process reward before its sigmoid: how likely the answer can still be reached from what is
            written up to a position, of models that were trained to say it; None without `value_head`.
    """

    logits: Tensor
    exit_logit: Tensor | None = None
    last_two: tuple[Tensor, Tensor] | None = None
    value: Tensor | None = None

    @property
    def residual(self) -> Tensor | None:
        """How far the last iteration moved the state, |s_R - s_{R-1}| / |s_R| by position, (B, T); small where the
        model has finished thinking. None where `last_two` is."""
        return None if self.last_two is None else relative_change(*self.last_two)


@dataclass(frozen=True, kw_only=True)
class ModelOutput(Reading):
    """The answer after the last iteration, and those asked for on the way.

    Attributes:
        state: (B, T, D), what the loop carries after its last iteration (before the final norm).
        iterations: (B, T) int64, iterations that each position used.
        readings: the answer at each count in `read_at`, from the same unroll.
        selected: (B, T, N, R - 1) bool, which routed passes of N thinking layers a position took; None without routing.
        router_logits: (B, T, N, R - 1), before the gate, -inf where a pass of capacity 0 did not ask; None without any.
        looks: (B, T) int64, answers that an exit rule read out on the way, which the result does not hold; None where
            no rule reads any.
        auxiliary_loss: scalar that training adds to its loss; None unless a training model with routers takes top_k.
    """

    state: Tensor
    iterations: Tensor
    readings: dict[int, Reading] = field(default_factory=dict)
    selected: Tensor | None = None
    router_logits: Tensor | None = None
    looks: Tensor | None = None
    auxiliary_loss: Tensor | None = None
