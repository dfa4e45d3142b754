"""Cost: what a part of a model costs. Parts add up, and a part that runs n times costs n times itself.

One multiplication and one addition are two FLOPs; matrix products and attention are counted (norms, activations and
the rotation are a few percent more and no counter agrees on them). Attention counts all T x T scores, as torch's own
counter does, although half of them are masked. So are those outside of a window, but where tokens come one by one
behind a cache: heads with a window then look no further than it (`one_by_one`).

A configuration adds up its own parts (`ModelConfig.once`, `ModelConfig.iteration`), and then

    forward(R)      = once + R * iteration                                                     (per token)
    training(R, k)  = 3 * once + (R + 2 k) * iteration       k iterations with gradient; a backward costs two forwards
"""

from __future__ import annotations

from typing import NamedTuple


class Cost(NamedTuple):
    """What a part of a model costs.

    Attributes:
        parameters: trained numbers.
        weights: entries of the matrices that a token is multiplied by.
        attended: FLOPs of a token for every position that it attends to.
        near: the part of `attended` that is of heads with a window.
        kept: numbers that a position leaves in the cache: keys, values, and what a convolution joins.
    """

    parameters: int = 0
    weights: int = 0
    attended: int = 0
    kept: int = 0
    near: int = 0

    def __add__(self, other: Cost) -> Cost:  # type: ignore[override]  # costs add up, they are not joined like tuples
        return Cost(*(one + more for one, more in zip(self, other, strict=True)))

    def __rmul__(self, count: int) -> Cost:  # type: ignore[override]
        return Cost(*(count * number for number in self))

    def flops(self, length: int, window: int | None = None) -> int:
        """Forward FLOPs of a token that attends to `length` positions, and through a window to no more than that."""
        unseen = 0 if window is None else max(0, length - window)
        return 2 * self.weights + self.attended * length - self.near * unseen


def matrix(n_in: int, n_out: int) -> Cost:
    """The cost of a matrix product without bias."""
    return Cost(parameters=n_in * n_out, weights=n_in * n_out)


def vector(width: int) -> Cost:
    """The cost of a norm, a bias or another vector: its arithmetic is not counted."""
    return Cost(parameters=width)
