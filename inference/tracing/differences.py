"""What a change did: two traces of one shape, beside each other.

Shapes: B batch, T positions, R iterations, C counts at which answers were read.
"""

from dataclasses import dataclass

from torch import Tensor

from mull.inference.tracing.answers import Lens, logarithms
from mull.inference.tracing.trace import Trace
from mull.models.output import relative_change


@dataclass(frozen=True)
class Difference:
    """How another run differs from a first one.

    Attributes:
        kl: (B, T), KL(first || other) of the last answers, in nats.
        flipped: (B, C, T) bool, where the likeliest token is another one.
        truth: (B, C, T), probability of the label in the other run minus that in the first; NaN without a label.
        distance: (B, R, T), |s - s'| / |s| of the states s of the first run; None unless both kept theirs.
    """

    kl: Tensor
    flipped: Tensor
    truth: Tensor
    distance: Tensor | None


def difference(first: Trace, other: Trace, lens: Lens = "coda") -> Difference:
    """Compare two traces of as many rows, positions and iterations, read at the same counts. Labels are the first's
    for the first, and the other's for the other. Raises ValueError for traces that do not match."""
    shapes = [(tuple(t.logits.shape), len(t.counts), t.read_at) for t in (first, other)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"the traces do not match: shape, iterations and read_at are {shapes[0]} and {shapes[1]}")
    missing = [t for t in (first, other) if lens not in t.answers]
    if missing:
        raise ValueError(f"a trace has no answers through the lens {lens!r}: trace with lenses=({lens!r},)")
    one, two = first.answers[lens], other.answers[lens]
    log_p, log_q = logarithms(first.logits), logarithms(other.logits)
    distance = None
    if first.states is not None and other.states is not None:
        distance = relative_change(first.states, other.states)
    return Difference(
        kl=(log_p.exp() * (log_p - log_q)).sum(dim=-1).clamp(min=0),  # rounding aside
        flipped=one.tokens[..., 0] != two.tokens[..., 0],
        truth=two.truth - one.truth,
        distance=distance,
    )
