"""Wavefront decoding, `wavefront:4:32`: think about a window of positions at once, the later ones on guessed tokens.

After the prompt, at full depth, every row has a window of active positions behind what is in the cache. A round:

    e_p <- (1 - m) Prelude(x_p) + m e_p                     x_p the latest guess of position p - 1; m = momentum
    s_p <- (1 - b) s_p + b s',  b = noise / (1 + n_p)       s' a fresh draw, n_p the iterations p has had; if noise > 0
    s_p <- Core(s_p, e_p)                                   r' times, all positions of the window together
    x_{p+1} <- sample(logits(s_p))
    freeze     the longest prefix of the window in which every position has settled; its tokens are written
    append     `headway` positions, while there are fewer than `width`

Settled: ||s - s'|| / ||s|| < threshold over the round, or all of its iterations had; and p read the token that p - 1 is
frozen with. One set of keys serves all iterations (cache policy `shared`, ring 1): everybody attends to the latest keys
of each position. Those of frozen positions stay, the others are dropped and written anew in the next round. A last
round may be shorter than r', so that a position has `iterations` at most, and exactly as many at threshold 0.

It is lossy: what is frozen stays, also where more thought would have changed it. At width 1 and threshold 0 it is plain
decoding under that policy, whatever r'. It takes more arithmetic per token and fewer calls, wide ones.

Diffusion-forcing sampler (Geiping et al., arXiv 2510.14961). Deviations: batches of any size, every row with a window
of its own. The reference freezes up to the last settled position, also over some that have not settled; here a prefix.
It draws anew in every round; here a position keeps its uniform draw, so that a guess only changes when its distribution
does. A position that has had all its iterations on a token that then changes begins again (happens with headway > 1).

Shapes: B rows still writing, W widest window, N active positions of all rows, D model width, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from mull.inference.decoders.contract import Decoder, Request, decoder
from mull.inference.rounds import Round, Rounds
from mull.inference.sampling import Draw
from mull.inference.session import Session
from mull.models import IteratedModel, LanguageModel
from mull.models.loop import check_count, iterate, last_state
from mull.models.output import relative_change
from mull.models.positions import Context


@decoder
@dataclass(frozen=True)
class Wavefront(Decoder):
    """How the window moves. See the head of this file.

    Args:
        iterations: r', per round.
        width: most active positions of a row.
        threshold: relative change of the state over a round below which a position has settled; 0 for never.
        headway: positions appended per round. Those after the first begin on the same guess.
        momentum: share of the former injected input that stays.
        noise: share of the state that a fresh draw replaces before a position's first round; 0 for none.
    """

    iterations: int = 4
    width: int = 32
    threshold: float = 0.03
    headway: int = 1
    momentum: float = 0.1
    noise: float = 0.0

    name, example = "wavefront", "wavefront:4:32"
    needs = IteratedModel
    policies = ("shared",)

    def __post_init__(self) -> None:
        for name in ("iterations", "width", "headway"):
            check_count(f"wavefront: {name}", getattr(self, name))
        if not (self.threshold >= 0 and math.isfinite(self.threshold)):
            raise ValueError(f"wavefront: threshold {self.threshold} is not a number of at least 0; 0 never settles")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"wavefront: momentum {self.momentum} lies outside 0 <= momentum < 1; 0 keeps nothing")
        if not 0 <= self.noise <= 1:
            raise ValueError(f"wavefront: noise {self.noise} lies outside 0 <= noise <= 1; 0 is none")

    @property
    def draws_more(self) -> bool:
        return self.noise > 0

    def check(self, model: LanguageModel, iterations: int | None, generator: torch.Generator | None) -> None:
        if self.noise > 0 and generator is None:
            raise ValueError(
                f"wavefront: noise {self.noise} is drawn at random, which needs a generator: "
                "pass generator=torch.Generator().manual_seed(seed), or noise=0"
            )
        if self.noise > 0 and isinstance(model, IteratedModel) and not model.starts_at_random:
            raise ValueError(
                f"wavefront: noise {self.noise} is a draw of the initial state, and this model's is always zero; "
                "use noise=0"
            )

    @torch.inference_mode()
    def rounds(self, session: Session, last: Tensor, request: Request) -> Rounds:
        model, draw, left = session.model, request.draw, request.limits
        assert isinstance(model, IteratedModel)
        limit = session.iterations
        nothing = torch.zeros(len(last), 1, model.config.d_model, dtype=model.dtype, device=model.device)
        luck = draw.uniform(len(last), 1).to(last.device)
        window = Window(last[:, None], nothing, nothing, torch.zeros_like(last)[:, None], luck, torch.ones_like(last))
        while True:
            held, active = session.lengths, window.active
            context = model.context(window.tokens, active, session.cache, limit)
            window, change = self.deepen(model, window, context, limit, *draw.generators)
            logits = model.read(window.state, context).logits[active]
            context.commit(None)
            guesses = torch.zeros_like(window.tokens)
            guesses[active] = draw.token_at(draw.distribution(logits), window.luck[active])
            settled = active & ((change < self.threshold) | (window.used >= limit))
            settled[:, 1:] &= window.tokens[:, 1:] == guesses[:, :-1]
            frozen = settled.long().cumprod(dim=1).sum(dim=1)
            session.cut([length + count for length, count in zip(held, frozen.tolist(), strict=True)])
            keep = yield Round(guesses, frozen, window.used)
            left = left - frozen
            if keep is not None:
                session, window, guesses = session.fork(keep), window.rows(keep), guesses[keep]
                frozen, left = frozen[keep], left[keep]
            window = self.move(window, guesses, frozen, left, limit, draw)

    def deepen(
        self,
        model: IteratedModel,
        window: Window,
        context: Context,
        limit: int,
        generator: torch.Generator | None = None,
    ) -> tuple[Window, Tensor]:
        """One round of thought: the window after it, and the relative change of its states (B, W)."""
        entered = model.enter(window.tokens, context)
        begun = (window.used > 0)[..., None]
        injected = torch.where(begun, torch.lerp(entered, window.injected, self.momentum), entered)
        before = torch.where(begun, window.state, model.start(entered))
        if self.noise > 0:
            share = (self.noise / (1 + window.used))[..., None].to(before.dtype)
            before = torch.lerp(before, model.start(before, generator), share)
        due = (limit - window.used).clamp(max=self.iterations) * window.active
        most = int(due.max())
        # positions that are due fewer iterations begin later, so that the keys of all are those of their last iteration
        begins = (most - due)[..., None]
        state = last_state(iterate(model.thinker(injected, context), before, most, begins=begins))
        deeper = replace(window, injected=injected, state=state, used=window.used + due)
        return deeper, relative_change(state, before)

    def move(self, window: Window, guesses: Tensor, frozen: Tensor, left: Tensor, limit: int, draw: Draw) -> Window:
        """The window without its first `frozen` (B,) positions, with those appended, reading the latest guesses."""
        widths = torch.minimum(window.widths - frozen + self.headway, left.clamp(max=self.width))
        places = frozen[:, None] + torch.arange(int(widths.max()), device=frozen.device)  # in the old window
        old = places < window.widths[:, None]
        reads = torch.cat([window.tokens[:, :1], guesses], dim=1)  # by place in the old window, and the one after it
        tokens = reads.gather(1, places.minimum(window.widths[:, None]))
        places = places.clamp(max=window.tokens.shape[1] - 1)
        used = window.used.gather(1, places)
        in_vain = (used >= limit) & (tokens != window.tokens.gather(1, places))
        luck = window.luck.gather(1, places)
        new = ~old & (torch.arange(places.shape[1], device=places.device) < widths[:, None])
        luck[new] = draw.uniform(int(new.sum()), 1)[:, 0].to(luck.device)
        wide = places[..., None].expand(-1, -1, window.state.shape[-1])
        injected, state = window.injected.gather(1, wide), window.state.gather(1, wide)
        return Window(tokens, injected, state, used.where(old & ~in_vain, 0), luck, widths)


@dataclass(frozen=True)
class Window:
    """The active positions, row b's in its first widths[b] of W places.

    Attributes:
        tokens: (B, W) int64, what each reads: the latest guess of the one before.
        injected, state: (B, W, D).
        used: (B, W) int64, iterations so far; 0 where nothing of injected and state counts.
        luck: (B, W), a position's uniform draw from [0, 1).
        widths: (B,) int64.
    """

    tokens: Tensor
    injected: Tensor
    state: Tensor
    used: Tensor
    luck: Tensor
    widths: Tensor

    @property
    def active(self) -> Tensor:
        """(B, W) bool."""
        return torch.arange(self.tokens.shape[1], device=self.tokens.device) < self.widths[:, None]

    def rows(self, keep: Tensor) -> Window:
        """The windows of some rows only."""
        return Window(*(getattr(self, field.name)[keep] for field in fields(self)))
