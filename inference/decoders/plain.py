"""Plain decoding: one token of each row after another, each thought about as long as asked."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mull.inference.decoders.contract import Decoder, Request, decoder
from mull.inference.rounds import Round, Rounds
from mull.inference.session import Session


@decoder
@dataclass(frozen=True)
class Plain(Decoder):
    """See the head of this file."""

    name = example = "plain"
    understands = frozenset({"warm_start", "ring", "capacity", "counts", "generators"})

    def rounds(self, session: Session, last: Tensor, request: Request) -> Rounds:
        draw = request.draw
        while True:
            answer = session.read(last[:, None])
            last = draw.choose(answer.logits)
            keep = yield Round(last[:, None], torch.ones_like(last), answer.iterations[:, None], session.last_residuals)
            if keep is not None:
                session, last, draw = session.fork(keep), last[keep], draw.rows(keep)
