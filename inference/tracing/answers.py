"""What a state would answer: the best tokens, the rank of the truth, and how far it is from the last answer.

    coda     the model's own reading: logits = read(s_r), as forward(read_at=[r]) gives them
    logit    the logit lens: logits = E . norm(s_r), the final norm and the head without the coda

Both are shown because they may differ: a coda can translate what the head alone cannot read. Logits are reduced a piece
at a time, so that memory grows with V T, never with V T R.

Shapes: B batch, T positions, V vocabulary, C counts at which answers are read, K tokens kept of each answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal, get_args

import torch
from torch import Tensor

from mull.models.precision import wide

Lens = Literal["coda", "logit"]
LENSES: tuple[Lens, ...] = get_args(Lens)
PIECE = 1 << 22  # logits that are reduced at once


@dataclass(frozen=True)
class Answers:
    """The answers through one lens, each after the counts of `Trace.read_at`.

    Attributes:
        tokens: (B, C, T, K) int64, the likeliest tokens, best first.
        probabilities: (B, C, T, K), of these.
        entropy: (B, C, T), of the whole distribution, in nats.
        kl: (B, C, T), KL(last || this) in nats, where `last` is what the model answers in the end, read by its coda.
        truth: (B, C, T), the probability of the label; NaN where there is none.
        rank: (B, C, T) int64, the place of the label among all tokens, 1 for the likeliest; 0 where there is none.
    """

    tokens: Tensor
    probabilities: Tensor
    entropy: Tensor
    kl: Tensor
    truth: Tensor
    rank: Tensor

    @staticmethod
    def stacked(parts: Sequence[Answers], dim: int) -> Answers:
        """Answers one after another along a new axis."""
        return Answers(*(torch.stack([getattr(part, f.name) for part in parts], dim) for f in fields(Answers)))

    @staticmethod
    def joined(parts: Sequence[Answers], dim: int) -> Answers:
        """Answers one after another along an axis that there is."""
        return Answers(*(torch.cat([getattr(part, f.name) for part in parts], dim) for f in fields(Answers)))


def answers(logits: Tensor, log_last: Tensor, labels: Tensor, top: int) -> Answers:
    """Logits (B, T, V) of one count, reduced, without the axis C.

    Args:
        logits: of this count.
        log_last: (B, T, V), logarithms of what the model answers in the end.
        labels: (B, T), negative where there is none.
        top: K.
    """
    length = max(1, PIECE // (len(logits) * logits.shape[-1]))
    pieces = [slice(start, start + length) for start in range(0, logits.shape[1], length)]
    return Answers.joined([reduced(logits[:, at], log_last[:, at], labels[:, at], top) for at in pieces], dim=1)


def reduced(logits: Tensor, log_last: Tensor, labels: Tensor, top: int) -> Answers:
    """`answers` of a piece of the positions that is small enough to be taken at once; see there for the arguments."""
    log_p = logarithms(logits)
    known, index = labels >= 0, labels.clamp(min=0)[..., None]
    best = log_p.topk(top, dim=-1)
    p, p_last = log_p.exp(), log_last.exp()
    truth = log_p.gather(-1, index)
    above = (~(log_p <= truth)).sum(dim=-1)  # of NaN nothing can be said: it ranks last
    return Answers(
        tokens=best.indices,
        probabilities=best.values.exp(),
        entropy=-torch.where(p > 0, p * log_p, 0.0).sum(dim=-1),
        kl=torch.where(p_last > 0, p_last * (log_last - log_p), 0.0).sum(dim=-1).clamp(min=0),  # rounding aside
        truth=truth.squeeze(-1).exp().masked_fill(~known, float("nan")),
        rank=((above + 1).clamp(max=logits.shape[-1]) * known),
    )


def logarithms(logits: Tensor) -> Tensor:
    """log p, in fp32 or better."""
    return wide(logits).log_softmax(dim=-1)
