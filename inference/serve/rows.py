"""A row: one answer that is being written, from its first token to the piece of text that ends it.

Whatever thread thinks, writes; a job hands on to the thread of the requests what its rows have to say:

    Piece     text that no later token changes, and what is told of its tokens
    Ended     the answer is whole: why, and what it took
    Failed    the answer cannot be had
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mull.inference.measure.settling import SETTLED
from mull.inference.sampling import Draw, broken
from mull.inference.serve.refusals import Refused
from mull.inference.serve.served import Served, Sharing
from mull.inference.text import TextStream
from mull.models.precision import wide

LEAST = -9999.0  # told of a token that cannot come, as OpenAI's endpoints do: JSON has no infinity
Reason = Literal["stop", "length"]


class Likely(NamedTuple):
    """What is told of one token: its log probability, those of the likeliest, and where its text begins."""

    token: int
    log_p: float
    top: list[tuple[int, float]]
    offset: int


class Spent(NamedTuple):
    """What an answer took: new tokens, their iterations, FLOPs with those of its prompt, and whether it had settled."""

    tokens: int
    iterations: int
    flops: float
    settled: bool | None


class Piece(NamedTuple):
    row: int
    text: str
    likely: list[Likely]
    used: list[tuple[int, int]]  # the tokens that the text is of, each with its iterations


class Ended(NamedTuple):
    row: int
    reason: Reason
    spent: Spent
    stop: str | None = None  # the stop string at which it ended


class Failed(NamedTuple):
    refusal: Refused


Event = Piece | Ended | Failed


@dataclass(frozen=True)
class Wish:
    """How an answer is written: see `protocol.Asked`, whose fields these are."""

    iterations: int
    max_tokens: int
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    stop: tuple[str, ...] = ()
    top: int | None = None


class Row:
    """See the head of this file.

    Args:
        number: of the answer in its request.
        served, sharing: the model, and who shares batches with the row.
        prompt: token ids.
        wish: how it is written.
        seed: of its draws.
        say: takes what the row has to say.
    """

    def __init__(
        self,
        number: int,
        served: Served,
        sharing: Sharing,
        prompt: Sequence[int],
        wish: Wish,
        seed: int,
        say: Callable[[Event], None],
    ) -> None:
        self.number, self.served, self.sharing, self.prompt, self.wish, self.say = (
            number, served, sharing, list(prompt), wish, say,
        )  # fmt: skip
        self.limit = min(wish.max_tokens, served.model.config.max_length - len(self.prompt))
        drawn = wish.temperature > 0
        self.draw = Draw(
            torch.Generator().manual_seed(seed) if drawn else None,
            wish.temperature,
            wish.top_k if drawn else None,  # greedy takes the likeliest, which every filter keeps
            wish.top_p if drawn else None,
            wish.min_p if drawn else None,
        )
        self.text = TextStream(served.tokenizer, self.prompt, wish.stop)
        self.tokens: list[int] = []
        self.spent, self.flops = 0, 0.0
        self.settled: bool | None = True  # of all that it holds; None once nobody can say
        self.held: list[Likely] = []  # told when their text is
        self.used: list[tuple[int, int]] = []  # tokens whose text is still to come, with their iterations
        self.ended = self.cancelled = False

    @property
    def longest(self) -> int:
        """Positions that the row may come to hold."""
        return len(self.prompt) + self.limit

    @property
    def done(self) -> bool:
        return self.ended or self.cancelled

    def take(self, token: int, logits: Tensor, used: int, flops: float, residual: float | None) -> None:
        """Take the next token, chosen by `logits` (V,), with what was spent on it and the most that the last iteration
        moved a state on the way to it; say what can be said, and end where it is time."""
        before = len(self.text.certain()) if self.wish.top is not None else 0
        self.tokens.append(token)
        self.used.append((token, used))
        self.spent, self.flops = self.spent + used, self.flops + flops
        self.watch(residual)
        text = self.text.add(token)
        if self.wish.top is not None:
            self.held.append(likely(token, logits, self.wish.top, before))
        over = self.text.ended or token in self.served.stops
        self.ended = over or len(self.tokens) >= self.limit
        if self.ended and not self.text.ended:
            text += self.text.rest()
        self.tell(text)
        if self.ended:
            spent = Spent(len(self.tokens), self.spent, self.flops, self.settled)
            self.say(Ended(self.number, "stop" if over else "length", spent, self.text.met))

    def watch(self, residual: float | None) -> None:
        """Note the most that the last iteration moved a state that the answer depends on."""
        self.settled = None if residual is None or self.settled is None else self.settled and residual < SETTLED

    def tell(self, text: str) -> None:
        """Say a text, and what is held of its tokens: of a stop string nothing is told, not even what it was likely."""
        shown = len(self.text.shown)
        ready = [one for one in self.held if one.offset < shown or (self.ended and not self.text.ended)]
        self.held = self.held[len(ready) :]
        if text or ready:
            self.say(Piece(self.number, text, ready, self.used))
            self.used = []

    def fail(self, refusal: Refused) -> None:
        """End without an answer."""
        self.ended = True
        self.say(Failed(refusal))


def likely(token: int, logits: Tensor, top: int, offset: int) -> Likely:
    """What is told of a token: by the model's own probabilities, before temperature and filters."""
    log_p = wide(logits).log_softmax(-1).clamp(min=LEAST)
    best, ids = log_p.topk(min(top, len(log_p)))
    return Likely(token, float(log_p[token]), list(zip(ids.tolist(), best.tolist(), strict=True)), offset)


def choose(rows: Sequence[Row], logits: Tensor) -> list[int]:
    """The next token of each row by logits (B, V), each as `mull.generate` draws it alone; -1 where there is none."""
    wrong = broken(logits).tolist()
    tokens = logits.argmax(dim=-1).tolist()
    for place, row in enumerate(rows):
        if wrong[place]:
            tokens[place] = -1
        elif row.draw.temperature > 0:
            tokens[place] = int(row.draw.choose(logits[place : place + 1]))
    return tokens
