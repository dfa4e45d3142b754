"""What a model has read of a branch, kept so that nothing is read twice, and counted as it is executed.

What a branch has read is a row of a session, up to a length. Branches that have read something are gathered into a
session of their own (copies: the rows stay as they were), and what is not read yet is read there. A branch that is to
be thought about at another depth is read anew, since keys of one depth are of no use at another.

Shapes: B rows, T tokens of a row in a call, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mull.inference.exits import Exit
from mull.inference.prompts import padded
from mull.inference.session import Session
from mull.inference.strategies.meter import Meter
from mull.models import LanguageModel, ModelOutput

Depth = tuple[int | None, Exit | None]


@dataclass
class Held:
    """The first `length` tokens of a row of a session.

    Attributes:
        logits: (V,), of what comes behind them; None where they were not kept.
        used: iterations that these logits took.
        residual: how far the last of them moved the state.
        rewards: at each of the first tokens, where the model has a reward head.
    """

    session: Session
    row: int
    length: int
    logits: Tensor | None = None
    used: int = 0
    residual: float | None = None
    rewards: tuple[float, ...] = ()


@dataclass
class Memory:
    """What is kept of a branch: the `ids` of its prompt and of what stands behind it, what was read of them, by depth,
    and the meter that is billed for reading and writing it."""

    ids: tuple[int, ...]
    held: dict[Depth, Held] = field(default_factory=dict)
    meter: Meter = field(default_factory=Meter, compare=False, repr=False)

    def is_read(self, depth: Depth) -> bool:
        """Whether the logits behind all of it are at hand."""
        held = self.held.get(depth)
        return held is not None and held.logits is not None and held.length == len(self.ids)

    def is_scored(self, depth: Depth) -> bool:
        """Whether the reward at its last token is known."""
        held = self.held.get(depth)
        return held is not None and len(held.rewards) >= len(self.ids)

    def cut(self, length: int) -> Memory:
        """What is kept of the first tokens. The last of them is read again when something is written behind it, since
        its logits were not kept, but where only what was drawn last is cut off."""
        kept = {depth: shortened(held, length) for depth, held in self.held.items()}
        return Memory(self.ids[:length], kept, self.meter)

    def grown(self, ids: Sequence[int]) -> Memory:
        """What is kept of the same tokens with others behind them."""
        return Memory(tuple(ids), dict(self.held), self.meter)


def shortened(held: Held, length: int) -> Held:
    """What is held of the first `length` tokens of a branch.

    It is as it was where no more is held, or just as much with the logits behind it. Otherwise the last of the tokens
    is left out, to be read again: logits behind it were not kept.
    """
    if held.length < length or (held.length == length and held.logits is not None):
        return held
    return replace(held, length=length - 1, logits=None, rewards=held.rewards[:length])


class Reader:
    """A model that reads, and bills each row for what it reads."""

    def __init__(self, model: LanguageModel, batch_size: int) -> None:
        self.model, self.batch_size = model, batch_size

    @torch.inference_mode()
    def read(self, memories: Sequence[Memory], depth: Depth) -> None:
        """Read what is not read yet, so that the logits behind all of them are at hand."""
        unread = {id(memory): memory for memory in memories if not memory.is_read(depth)}
        begun = {name: memory for name, memory in unread.items() if depth in memory.held and memory.held[depth].length}
        for batch in self.batches([memory for name, memory in unread.items() if name not in begun]):
            session = Session(self.model, len(batch), self.model.config.max_length, *depth, residuals=True)
            self.read_rows(session, batch, depth)
        for batch in self.batches(list(begun.values())):
            self.read_rows(gathered(batch, depth), batch, depth)

    def batches(self, memories: Sequence[Memory]) -> Iterator[Sequence[Memory]]:
        for first in range(0, len(memories), self.batch_size):
            yield memories[first : first + self.batch_size]

    def read_rows(self, session: Session, memories: Sequence[Memory], depth: Depth) -> None:
        """Read the rest of each behind what the session, whose rows they are, holds of it."""
        starts = session.lengths
        tokens, mask = padded([list(memory.ids[start:]) for memory, start in zip(memories, starts, strict=True)])
        whole = mask is None or bool(mask.all())
        out, residual = self.think(session, tokens, memories, None if whole else mask)
        used, moved, rewards = out.iterations[:, -1].tolist(), last_moves(residual, len(memories)), rewards_of(out)
        for row, (memory, start) in enumerate(zip(memories, starts, strict=True)):
            known: tuple[float, ...] = ()
            if rewards is not None:
                before = memory.held[depth].rewards[:start] if start else ()
                known = (*before, *rewards[row][tokens.shape[1] - (len(memory.ids) - start) :])
            memory.held[depth] = Held(session, row, len(memory.ids), out.logits[row, -1], used[row], moved[row], known)

    def think(
        self, session: Session, tokens: Tensor, memories: Sequence[Memory], mask: Tensor | None = None
    ) -> tuple[ModelOutput, Tensor | None]:
        """The model's answers at these tokens (B, T), padded on the left, and how far the last iteration moved each,
        (B, T), where that is asked for. The memories are of the rows: they say who is billed."""
        before, tokens = session.lengths, tokens.to(self.model.device)
        out, residual = session.thought(tokens, None if mask is None else mask.to(self.model.device))
        self.count(out, before, session.lengths, memories)
        return out, residual

    def count(self, out: ModelOutput, before: list[int], after: list[int], memories: Sequence[Memory]) -> None:
        """Bill the rows of a call, each at its own length."""
        looped = self.model.config.default_iterations is not None
        read = [end - start for start, end in zip(before, after, strict=True)]
        flops = self.model.executed_flops(out, after, read)
        for spent, own, cost, memory in zip(out.iterations.tolist(), read, flops, memories, strict=True):
            memory.meter.add(flops=cost, iterations=sum(spent[-own:]) if looped else 0, read=own)


def gathered(memories: Sequence[Memory], depth: Depth) -> Session:
    """A session with copies of what these hold at a depth."""
    held = [memory.held[depth] for memory in memories]
    session = Session.gathered([(each.session, each.row) for each in held])
    session.cut([each.length for each in held])
    return session


def last_moves(residual: Tensor | None, rows: int) -> list[float | None]:
    """How far the last iteration moved the last state of each row, from residuals (B, T); None where nobody knows."""
    if residual is None:
        return [None] * rows
    return [None if moved != moved else moved for moved in residual[:, -1].tolist()]


def rewards_of(out: ModelOutput) -> list[list[float]] | None:
    """What the reward head says at each position, (B, T) from 0 to 1; None without a head."""
    return None if out.value is None else torch.sigmoid(out.value.double()).tolist()
