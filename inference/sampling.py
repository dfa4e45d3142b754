"""From logits to tokens: greedy, or a draw after temperature, top-k, top-p and min-p, in this order.

    p = softmax(logits / temperature)
    top_k   keep the k most likely tokens
    top_p   keep the smallest set of most likely tokens whose mass reaches p     (Holtzman et al., arXiv 1904.09751)
    min_p   keep tokens at least min_p times as likely as the most likely one    (Nguyen et al., arXiv 2407.01082)

Each works on what the one before left, renormalised. All are pure functions; randomness comes from the caller's
generator and from nowhere else. Of equally likely tokens the smaller id counts as the more likely one.

Shapes: B batch, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mull.models.precision import wide

Generators = torch.Generator | Sequence[torch.Generator]  # one for all rows, or one a row
NO_NUMBER = "the model's logits are NaN or infinite: no token can be chosen; use fewer iterations or other weights"
TINY = 1e-30  # a smaller temperature would be 0 in fp32, and the largest logit 0 / 0


def probabilities(
    logits: Tensor,
    temperature: float,
    *,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> Tensor:
    """(B, V) logits -> (B, V) probabilities that a draw at temperature > 0 follows, in fp32 or better."""
    logits = wide(logits)
    # the largest logit becomes 0 before the division, so that a tiny temperature sharpens instead of overflowing
    p = torch.softmax((logits - logits.amax(dim=-1, keepdim=True)) / max(temperature, TINY), dim=-1)
    if top_k is None and top_p is None and min_p is None:
        return p
    ranked, token_ids = p.sort(dim=-1, descending=True, stable=True)  # every filter keeps a head of this list
    if top_k is not None:
        ranked = renormalized(ranked, torch.arange(ranked.shape[-1], device=ranked.device) < top_k)
    if top_p is not None and top_p < 1:
        mass_before = ranked.cumsum(dim=-1) - ranked
        first = torch.arange(ranked.shape[-1], device=ranked.device) == 0  # also where top_p rounds to 0
        ranked = renormalized(ranked, (mass_before < top_p) | first)  # the token that reaches top_p is kept
    if min_p is not None:
        ranked = renormalized(ranked, ranked >= min_p * ranked[..., :1])
    return torch.zeros_like(p).scatter(-1, token_ids, ranked)


@dataclass(frozen=True)
class Draw:
    """How tokens are drawn. Greedy is the one-hot distribution of the most likely token.

    Args:
        generator: source of the draws, on any device. One draw of it serves all rows, so a row's token depends on its
            place. Of several, one a row, each serves its own, so a row's tokens are those that it would get alone.
        temperature: 0 takes the most likely token, which every filter keeps; more than 0 draws.
        top_k: draw among so many of the likeliest tokens; None for all. See the head of this file for all three.
        top_p: draw among the likeliest tokens that make up this mass; None for all.
        min_p: draw among tokens at least so many times as likely as the likeliest; None for all.

    Raises:
        ValueError: an option out of range, a draw without a generator, or a filter where nothing is drawn.
    """

    generator: Generators | None = None
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    def __post_init__(self) -> None:
        t, k = self.temperature, self.top_k
        for name, value in (("temperature", t), ("top_p", self.top_p), ("min_p", self.min_p)):
            if not isinstance(value, Real) and (value is not None or name == "temperature"):
                raise ValueError(f"{name} must be a number, not {value!r}")
        given: Any = self.generator
        each = given if isinstance(given, list | tuple) else [] if given is None else [given]
        if not all(isinstance(one, torch.Generator) for one in each):
            raise ValueError(f"generator must be a torch.Generator, or a list of one a row, not {self.generator!r}")
        if not (t >= 0 and math.isfinite(t)):
            raise ValueError(f"temperature {t} is not a number of at least 0; 0 is greedy, 1 leaves p as it is")
        if t > 0 and self.generator is None:
            raise ValueError(
                f"temperature {t} draws at random, which needs a generator: "
                "pass generator=torch.Generator().manual_seed(seed), or temperature=0"
            )
        if k is not None and (not isinstance(k, Integral) or isinstance(k, bool) or k < 1):
            raise ValueError(f"top_k {k} is not an integer of at least 1; leave it out to keep every token")
        for name, value in (("top_p", self.top_p), ("min_p", self.min_p)):
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"{name} {value} lies outside 0 < {name} <= 1; leave it out to keep every token")
        for name, value in (("top_k", k), ("top_p", self.top_p), ("min_p", self.min_p)):
            if value is not None and t == 0:
                raise ValueError(f"{name} {value} filters draws, and temperature 0 draws none; leave one of them out")

    def choose(self, logits: Tensor) -> Tensor:
        """(N, V) logits -> (N,) tokens. Raises ValueError for logits that are `broken`."""
        if self.temperature == 0:
            check_logits(logits)
            return logits.argmax(dim=-1)
        return self.token(self.distribution(logits))

    def distribution(self, logits: Tensor) -> Tensor:
        """(..., V) logits -> probabilities. Raises ValueError for logits that are `broken`."""
        check_logits(logits)
        if self.temperature == 0:
            return F.one_hot(logits.argmax(dim=-1), logits.shape[-1]).to(logits.dtype)
        p = probabilities(logits.flatten(0, -2), self.temperature, top_k=self.top_k, top_p=self.top_p, min_p=self.min_p)
        return p.view(logits.shape)

    def token(self, p: Tensor) -> Tensor:
        """(N, V) probabilities -> (N,) tokens."""
        if self.generator is None or self.temperature == 0:
            return p.argmax(dim=-1)
        parts = [p] if isinstance(self.generator, torch.Generator) else p.split(1)
        drawn = [
            torch.multinomial(part.to(each.device), 1, generator=each)
            for part, each in zip(parts, self.generators, strict=True)
        ]
        return torch.cat(drawn).squeeze(-1).to(p.device)

    def token_at(self, p: Tensor, luck: Tensor) -> Tensor:
        """(N, V) probabilities and draws (N,) from [0, 1) -> (N,) tokens: that in whose part of [0, 1) the draw falls.
        The same draw on nearly the same probabilities is nearly always the same token."""
        if self.generator is None or self.temperature == 0:
            return p.argmax(dim=-1)
        mass = p.double().cumsum(dim=-1)
        return (mass <= luck[:, None] * mass[:, -1:]).sum(dim=-1)

    def uniform(self, rows: int, k: int) -> Tensor:
        """(rows, k) from [0, 1)."""
        if self.generator is None or self.temperature == 0:
            return torch.full((rows, k), 0.5)  # one-hot ratios are 0 or 1
        each = rows if isinstance(self.generator, torch.Generator) else 1
        drawn = [torch.rand(each, k, dtype=torch.float32, generator=g, device=g.device) for g in self.generators]
        return torch.cat(drawn)

    def check_rows(self, rows: int) -> None:
        """Raise a ValueError if there is a generator for each of another number of rows."""
        if not isinstance(self.generator, torch.Generator | None) and len(self.generator) != rows:
            raise ValueError(f"there are {len(self.generators)} generators for {rows} rows; give one a row, or one")

    @property
    def generators(self) -> Sequence[torch.Generator]:
        """All of them, for all rows together or one a row."""
        if self.generator is None or isinstance(self.generator, torch.Generator):
            return [] if self.generator is None else [self.generator]
        return self.generator

    def rows(self, keep: Tensor) -> Draw:
        """The draws of some rows only, `keep` (B',), their places: what a decoder goes on with that forks its rows."""
        if self.generator is None or isinstance(self.generator, torch.Generator):
            return self
        return replace(self, generator=[self.generator[row] for row in keep.tolist()])


def seed_from(key: str) -> int:
    """A seed that is a function of a text, so that draws depend on what they are for and not on what comes beside."""
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "little") >> 1


def renormalized(p: Tensor, keep: Tensor) -> Tensor:
    """(B, V) probabilities with those outside `keep` at zero and the others scaled to sum to 1."""
    kept = p * keep
    return kept / kept.sum(dim=-1, keepdim=True)


def broken(logits: Tensor) -> Tensor:
    """(..., V) logits -> (...) bool, whether no token can be chosen by them: one is NaN or inf, or all are -inf. That
    some are -inf says that these tokens cannot come."""
    return ~logits.amax(dim=-1).isfinite()


def check_logits(logits: Tensor) -> None:
    """Raise a ValueError where no token can be chosen by some logits; see `broken`."""
    if bool(broken(logits).any()):
        raise ValueError(NO_NUMBER)
