"""Adaptive decoding: plain decoding under an exit rule, `adaptive:latent:0.03`. Written shorter, exit="latent:0.03".

Each position, those of the prompt too, leaves the loop when the rule says so (early_exit.py). Positions of one depth
keep their own keys, so the cache follows policy `deepest`, or `shared`.
"""

from __future__ import annotations

from dataclasses import dataclass

from mull.inference.decoders.contract import decoder
from mull.inference.decoders.plain import Plain
from mull.inference.exits import Exit, parse


@decoder
@dataclass(frozen=True)
class Adaptive(Plain):
    """See the head of this file.

    Args:
        rule: the exit rule.
    """

    rule: Exit

    name, example = "adaptive", "adaptive:latent:0.03"
    policies = ("deepest", "shared")
    understands = frozenset({"warm_start", "ring", "generators"})

    @classmethod
    def from_text(cls, text: str) -> Adaptive:
        return cls(parse(text))

    @property
    def exit(self) -> Exit:
        return self.rule
