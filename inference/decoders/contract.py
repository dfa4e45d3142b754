"""Decoder: one way of writing tokens, and the registry of them.

A decoder is a frozen dataclass, whose fields are its options, in a file of its own with `@decoder` above it. It gets a
session that has read the prompts, and yields rounds: what each row that still writes got. Written out it is
`name:value,option=value` (`speculate:4:16`), and a call has one decoder. `plain.py` is the shortest.

Shapes: B rows still writing, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mull.inference.exits import Exit
from mull.inference.rounds import Rounds
from mull.inference.sampling import Draw, Generators
from mull.inference.session import Session, SessionOptions
from mull.inference.written import filled, parse
from mull.models import LanguageModel
from mull.models.cache import Policy
from mull.models.loop import Iterations
from mull.models.registry import Registry


@dataclass(frozen=True)
class Request:
    """What is asked of a decoder: how tokens are drawn, and how many each row may still write, `limits` (B,) int64."""

    draw: Draw
    limits: Tensor


@dataclass(frozen=True)
class Decoder(ABC):
    """See the head of this file.

    Attributes:
        name: the word that it is registered and written by.
        example: how it is written.
        needs: the kind of model that it works with.
        policies: cache policies that it works with; the first is the one it gets unless another is asked for.
        understands: which options of a call mean something to it: warm_start, ring, capacity, counts (an iteration
            count for each row), generators (one for each row: it narrows them by `Draw.rows` where it forks its rows).
            Options that it does not understand are refused.
    """

    name: ClassVar[str]
    example: ClassVar[str]
    needs: ClassVar[type[LanguageModel]] = LanguageModel
    policies: ClassVar[tuple[Policy, ...]] = ("full", "deepest", "shared")
    understands: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def from_text(cls, text: str) -> Decoder:
        """The decoder that `value:value,option=value` stands for."""
        return filled(cls, f"decode {cls.name}", text, cls.example)

    @property
    def exit(self) -> Exit | None:
        """The rule that ends thinking early; None where there is none."""
        return None

    @property
    def draws_more(self) -> bool:
        """Whether it draws at random beside the tokens, at temperature 0 too."""
        return False

    def check(  # noqa: B027  # most have nothing to refuse
        self, model: LanguageModel, iterations: int | None, generator: torch.Generator | None
    ) -> None:
        """Raise a ValueError where this model cannot be decoded so at this count, None for one count per row."""

    @abstractmethod
    def rounds(self, session: Session, last: Tensor, request: Request) -> Rounds:
        """Rounds of the rows that still write.

        Args:
            session: has read everything before `last`.
            last: (B,), the last token of each row, which the session has not read yet.
            request: how tokens are drawn, and how many.
        """


DECODERS: Registry[type[Decoder]] = Registry("decode")


def decoder(kind: type[Decoder]) -> type[Decoder]:
    """A decorator that registers a decoder under its name."""
    return DECODERS.register(kind.name)(kind)


def choose_decoder(decode: str | Decoder | None, exit: str | Exit | None) -> Decoder:
    """The decoder of a call; `exit` is short for the decoder `adaptive` with this rule. Raises ValueError for a word or
    option that is not known, and where both are given: a call has one decoder."""
    if decode is not None and exit is not None:
        raise ValueError(
            f"a call has one decoder: exit={exit!r} is short for decode='adaptive:...', and decode={decode!r} is "
            "another; leave one of them out"
        )
    if exit is not None:
        decode = f"adaptive:{exit}" if isinstance(exit, str) else DECODERS["adaptive"](exit)  # type: ignore[call-arg]
    if decode is None:
        return DECODERS["plain"]()
    if not isinstance(decode, str | Decoder):
        raise ValueError(f"decode must be written as plain or speculate:4:16, or be a Decoder, not {decode!r}")
    return parse(decode, DECODERS) if isinstance(decode, str) else decode


def check_decoder(
    decoder: Decoder,
    model: LanguageModel,
    iterations: Iterations | None,
    generator: Generators | None,
    options: SessionOptions,
) -> Policy:
    """The cache policy to use. Raises ValueError for a model, policy or option that the decoder does not go with."""
    if not isinstance(model, decoder.needs):
        raise ValueError(
            f"decode {decoder.name!r} needs a model of kind {decoder.needs.__name__}, not a {type(model).__name__}"
        )
    if isinstance(iterations, Tensor) and "counts" not in decoder.understands:
        raise ValueError(
            f"decode {decoder.name!r} takes one count of iterations for all rows, not one per row; give a number"
        )
    one = generator if isinstance(generator, torch.Generator | None) else next(iter(generator), None)
    if one is not generator and "generators" not in decoder.understands:
        raise ValueError(f"decode {decoder.name!r} draws for all rows from one generator, not from one each; give one")
    for name, usual in (("warm_start", False), ("ring", 1), ("capacity", None)):
        if options.get(name, usual) != usual and name not in decoder.understands:
            raise ValueError(f"decode {decoder.name!r} does not understand {name}={options.get(name)!r}; leave it out")
    policy = options.get("policy")
    if policy is not None and policy not in decoder.policies:
        raise ValueError(
            f"decode {decoder.name!r} needs a cache of policy {' or '.join(decoder.policies)}, not {policy}; "
            "leave policy out"
        )
    decoder.check(model, None if isinstance(iterations, Tensor) else iterations, one)
    return policy or decoder.policies[0]
