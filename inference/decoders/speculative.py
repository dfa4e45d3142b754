"""Self-speculative decoding, `speculate:4:16`: draft with few iterations, verify all drafts at once at full depth.

    draft    t_1 .. t_k, one at a time, at r iterations                 q_j: distribution each was drawn from
    verify   iterations r + 1 .. R of all k + 1 positions together      p_j: distribution at full depth
    accept   t_j with probability min(1, p_j(t_j) / q_j(t_j)), up to the first refusal; then one more token from
             norm(max(p_j - q_j, 0)), or from p_{k+1} if none was refused      (Leviathan et al., arXiv 2211.17192)

What comes out is distributed as plain decoding at R; greedy output is identical, since both distributions are one-hot
then. The draft is no other model: its states after r iterations are those of plain decoding, so verification goes on
from them and nothing is computed twice but the coda. Rows accept different numbers of tokens; the rest is rolled back.

Shapes: B rows still writing, k drafted tokens, D model width, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mull.inference.decoders.contract import Decoder, Request, decoder
from mull.inference.rounds import Round, Rounds
from mull.inference.sampling import Draw
from mull.inference.session import Session
from mull.models import Cache, IteratedModel, LanguageModel
from mull.models.loop import check_count, iterate, last_state
from mull.models.output import relative_change


@decoder
@dataclass(frozen=True)
class Speculative(Decoder):
    """See the head of this file.

    Args:
        iterations: r, of a drafted token; less than those of decoding.
        tokens: k, drafted before each verification.
    """

    iterations: int
    tokens: int

    name, example = "speculate", "speculate:4:16"
    needs = IteratedModel
    policies = ("full",)

    def __post_init__(self) -> None:
        check_count("speculate: iterations", self.iterations)
        check_count("speculate: tokens", self.tokens)

    def check(self, model: LanguageModel, iterations: int | None, generator: torch.Generator | None) -> None:
        if iterations is not None and self.iterations >= iterations:
            remedy = f"draft at 1 .. {iterations - 1}" if iterations > 1 else "decode at 2 iterations or more"
            raise ValueError(
                f"a draft at {self.iterations} iterations must be shallower than decoding at {iterations}; {remedy}"
            )

    @torch.inference_mode()
    def rounds(self, session: Session, last: Tensor, request: Request) -> Rounds:
        model, draw = session.model, request.draw
        assert isinstance(model, IteratedModel)
        full = session.iterations
        while True:
            cache, k = session.cache, min(self.tokens, session.room - 1)
            inputs, drafted, injected, state = self.draft(model, last, cache, full, k, draw)
            logits, states = self.verify(model, inputs, injected, state, cache, full)
            p = draw.distribution(logits)
            accepted, then = accept(inputs[:, 1:], drafted, p, draw.token, draw.uniform)
            moved = session.so_far(relative_change(*states)) if session.residuals else None
            session.cut([length - k + int(n) for length, n in zip(session.lengths, accepted, strict=True)])
            tokens = torch.cat([inputs[:, 1:], then[:, None]], dim=1)
            tokens.scatter_(1, accepted[:, None], then[:, None])
            if moved is not None:
                session.residual = moved.gather(1, accepted[:, None])[:, 0]
            keep = yield Round(tokens, accepted + 1, torch.full_like(tokens, full), moved)
            last = then
            if keep is not None:
                session, last = session.fork(keep), last[keep]

    def draft(
        self, model: IteratedModel, last: Tensor, cache: Cache, full: int, k: int, draw: Draw
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """k tokens after `last`, at few iterations: inputs (B, k + 1) from `last` on, the distributions (B, k, V) they
        were drawn from, and of each input what is injected and the state, (B, k + 1, D). The cache holds them."""
        inputs, distributions, injections, states = [last], [], [], []
        for j in range(k + 1):
            context = model.context(inputs[-1][:, None], None, cache, full)
            injected = model.enter(inputs[-1][:, None], context)
            state = last_state(iterate(model.thinker(injected, context), model.start(injected), self.iterations))
            injections.append(injected)
            states.append(state)
            if j < k:
                distributions.append(draw.distribution(model.read(state, context).logits[:, -1]))
                inputs.append(draw.token(distributions[-1]))
            context.commit(None)
        q = torch.stack(distributions, dim=1) if k else last.new_zeros(len(last), 0, model.config.vocab_size).float()
        return torch.stack(inputs, dim=1), q, torch.cat(injections, dim=1), torch.cat(states, dim=1)

    def verify(
        self, model: IteratedModel, inputs: Tensor, injected: Tensor, state: Tensor, cache: Cache, full: int
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Logits (B, k + 1, V) at full depth of drafted inputs, for which the cache goes back to where they begin; and
        the last two states, (B, k + 1, D)."""
        cache.rollback([length - inputs.shape[1] for length in cache.lengths])
        context = model.context(inputs, None, cache, full)
        think, done = model.thinker(injected, context), self.iterations
        before = state
        for _, thought in iterate(lambda s, index: think(s, index + done), state, full - done):
            before, state = state, thought
        logits = model.read(state, context).logits
        context.commit(full)
        return logits, (state, before)


def accept(
    tokens: Tensor, q: Tensor, p: Tensor, draw: Callable[[Tensor], Tensor], uniform: Callable[[int, int], Tensor]
) -> tuple[Tensor, Tensor]:
    """Rejection sampling: tokens (B, k) drawn from q (B, k, V), wanted from p (B, k + 1, V).

    Returns how many of each row are accepted (B,), and the token that comes after these (B,).
    """
    rows, k = tokens.shape
    index = tokens[..., None]
    ratio = (p[:, :k].gather(-1, index) / q.gather(-1, index)).squeeze(-1)
    accepted = (uniform(rows, k).to(ratio.device) < ratio).long().cumprod(dim=1).sum(dim=1)
    everywhere = torch.arange(rows, device=tokens.device)
    wanted = p[everywhere, accepted]
    offered = torch.cat([q, torch.zeros_like(p[:, :1])], dim=1)[everywhere, accepted]
    rest = (wanted - offered).clamp(min=0)
    mass = rest.sum(dim=-1, keepdim=True)
    return accepted, draw(torch.where(mass > 0, rest / mass.clamp(min=1e-30), wanted))
