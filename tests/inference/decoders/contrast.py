"""Contrastive decoding, `contrast:1:0.5`: what further thought adds to the logits counts for more than it does."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mull.inference.decoders import Decoder, Request, decoder
from mull.inference.rounds import Round, Rounds
from mull.inference.session import Session
from mull.models import IteratedModel


@decoder
@dataclass(frozen=True)
class Contrast(Decoder):
    """(1 + weight) * logits after all iterations - weight * logits after a few.

    Args:
        iterations: the few.
        weight: 0 is plain decoding.
    """

    iterations: int
    weight: float = 0.5

    name, example = "contrast", "contrast:1:0.5"
    needs = IteratedModel
    policies = ("deepest",)  # two depths in one cache

    def rounds(self, session: Session, last: Tensor, request: Request) -> Rounds:
        hasty = session.fork(range(len(last)))
        hasty.iterations = self.iterations
        while True:
            answer, first = session.read(last[:, None]), hasty.read(last[:, None])
            last = request.draw.choose((1 + self.weight) * answer.logits - self.weight * first.logits)
            keep = yield Round(last[:, None], torch.ones_like(last), answer.iterations[:, None])
            if keep is not None:
                session, hasty, last = session.fork(keep), hasty.fork(keep), last[keep]
