"""Self-speculative decoding: draft with few iterations, verify all drafted positions at full depth in one pass.

    draft    t_1 .. t_k, one at a time, at r iterations                 q_j: distribution each was drawn from
    verify   iterations r + 1 .. R of all k + 1 positions together      p_j: distribution at full depth
    accept   t_j with probability min(1, p_j(t_j) / q_j(t_j)), up to the first refusal; then one more token from
             norm(max(p_j - q_j, 0)), or from p_{k+1} if none was refused      (Leviathan et al., arXiv 2211.17192)

What comes out is distributed as plain decoding at R; greedy output is identical, since both distributions are one-hot
then. The draft is no other model: its states after r iterations are those of plain decoding, so verification goes on
from them and nothing is computed twice but the coda. Rows accept different numbers of tokens and stay of different
length; what was refused is rolled back.

Shapes: B rows still writing, k drafted tokens, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mull.inference.lockstep import Round, Rounds
from mull.inference.sampling import Draw
from mull.models import Cache, LanguageModel, RecurrentDepthTransformer
from mull.models.loop import iterate, last_state


@dataclass(frozen=True)
class Speculation:
    """How to draft.

    Args:
        iterations: r, of a drafted token; less than those of decoding.
        tokens: k, drafted before each verification.
    """

    iterations: int
    tokens: int


def parse_speculation(text: str | Speculation | None) -> Speculation | None:
    """`4:16` -> draft 16 tokens at 4 iterations each."""
    if text is None or isinstance(text, Speculation):
        return text
    iterations, _, tokens = text.partition(":")
    if not (iterations.isdecimal() and tokens.isdecimal()):
        raise ValueError(f"speculate {text!r} is not ITERATIONS:TOKENS; 4:16 drafts 16 tokens at 4 iterations each")
    return Speculation(int(iterations), int(tokens))


def check_speculation(model: LanguageModel, how: Speculation, iterations: int | Tensor | None) -> int:
    """The full depth R; a ValueError where drafting at `how` below it is impossible."""
    if not isinstance(model, RecurrentDepthTransformer):
        raise ValueError(f"speculation needs a model with a core that is iterated, not a {type(model).__name__}")
    if isinstance(iterations, Tensor):
        raise ValueError("speculation takes one count of iterations for all rows, not one per row")
    full = model.config.mean_iterations if iterations is None else iterations
    if not 1 <= how.iterations < full:
        raise ValueError(
            f"a draft at {how.iterations} iterations must be shallower than decoding at {full}; "
            f"give 1 .. {full - 1}, or more iterations"
        )
    if how.tokens < 1:
        raise ValueError(f"speculation must draft at least 1 token, not {how.tokens}")
    return full


@torch.inference_mode()
def speculate(
    model: LanguageModel,
    last: Tensor,
    cache: Cache,
    full: int,
    how: Speculation,
    room: int,
    choose: Draw,
) -> Rounds:
    """Rounds of up to k + 1 tokens a row.

    Args:
        last: (B,), the last token of each row, not in the cache yet.
        cache: of policy full, filled at `full` iterations.
        room: most positions the cache will hold.
        choose: how tokens are drawn.
    """
    assert isinstance(model, RecurrentDepthTransformer)  # check_speculation saw to it
    while True:
        k = min(how.tokens, room - cache.length - 1)
        inputs, drafted, injected, state = draft(model, last, cache, full, how.iterations, k, choose)
        p = choose.distribution(verify(model, inputs, injected, state, cache, full, how.iterations))
        accepted, then = accept(inputs[:, 1:], drafted, p, choose.token, choose.uniform)
        held = cache.lengths
        cache.rollback([length - k + int(n) for length, n in zip(held, accepted, strict=True)])
        tokens = torch.cat([inputs[:, 1:], then[:, None]], dim=1)
        tokens.scatter_(1, accepted[:, None], then[:, None])
        keep = yield Round(tokens, accepted + 1, torch.full_like(tokens, full))
        last = then
        if keep is not None:
            cache, last = cache.fork(keep.tolist()), last[keep]


def draft(
    model: RecurrentDepthTransformer,
    last: Tensor,
    cache: Cache,
    full: int,
    iterations: int,
    k: int,
    choose: Draw,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """k tokens after `last`, at few iterations. Inputs (B, k + 1) beginning with `last`, the distributions (B, k, V)
    they were drawn from, and of each input what is injected and the state, (B, k + 1, D). Their keys of these
    iterations are in the cache; the caller shortens it to where it was."""
    inputs, distributions, injections, states = [last], [], [], []
    for j in range(k + 1):
        frame = model.frame(inputs[-1][:, None], None, cache, full)
        injected = model.enter(inputs[-1][:, None], frame)
        state = last_state(
            iterate(model.thinker(model.prepare(injected), frame), model.draw_state(injected, None), iterations)
        )
        injections.append(injected)
        states.append(state)
        if j < k:
            distributions.append(choose.distribution(model.read(state, frame).logits[:, -1]))
            inputs.append(choose.token(distributions[-1]))
        frame.finish(None)
    q = torch.stack(distributions, dim=1) if k else last.new_zeros(len(last), 0, model.config.vocab_size).float()
    return torch.stack(inputs, dim=1), q, torch.cat(injections, dim=1), torch.cat(states, dim=1)


def verify(
    model: RecurrentDepthTransformer,
    inputs: Tensor,
    injected: Tensor,
    state: Tensor,
    cache: Cache,
    full: int,
    drafted: int,
) -> Tensor:
    """Logits (B, k + 1, V) at full depth of inputs whose first `drafted` iterations are done."""
    cache.rollback([length - inputs.shape[1] for length in cache.lengths])
    frame = model.frame(inputs, None, cache, full)
    think = model.thinker(model.prepare(injected), frame)
    state = last_state(iterate(lambda s, index: think(s, index + drafted), state, full - drafted))
    logits = model.read(state, frame).logits
    frame.finish(full)
    return logits


def accept(
    tokens: Tensor, q: Tensor, p: Tensor, draw: Callable[[Tensor], Tensor], uniform: Callable[[int, int], Tensor]
) -> tuple[Tensor, Tensor]:
    """Rejection sampling: tokens (B, k) drawn from q (B, k, V), wanted from p (B, k + 1, V).

    Returns how many of each row are accepted (B,), and the token that comes after these (B,).
    """
    rows, k = tokens.shape
    index = tokens[..., None]
    ratio = (p[:, :k].gather(-1, index) / q.gather(-1, index)).squeeze(-1)
    accepted = (uniform(rows, k) < ratio).long().cumprod(dim=1).sum(dim=1)
    everywhere = torch.arange(rows, device=tokens.device)
    wanted = p[everywhere, accepted]
    offered = torch.cat([q, torch.zeros_like(p[:, :1])], dim=1)[everywhere, accepted]
    rest = (wanted - offered).clamp(min=0)
    mass = rest.sum(dim=-1, keepdim=True)
    return accepted, draw(torch.where(mass > 0, rest / mass.clamp(min=1e-30), wanted))
