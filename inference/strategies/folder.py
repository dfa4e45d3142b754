"""FolderSolver: a model of mull writes.

    rows that go on are gathered into a session;  what is not read yet is read, once for all forks of a branch;
    then each row gets one token after another until it stops, and keeps its row of the session

Shapes: B rows that write, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from mull.inference.checks import check_prompt
from mull.inference.early_exit import choose_exit
from mull.inference.generate import stop_ids
from mull.inference.prompts import integers
from mull.inference.strategies.meter import Meter, Shared
from mull.inference.strategies.reading import Depth, Held, Memory, Reader, gathered, last_moves, rewards_of
from mull.inference.strategies.solver import (
    After,
    Before,
    Branch,
    Key,
    Line,
    Manner,
    Marks,
    Solver,
    Token,
    forked,
)
from mull.inference.strategies.spelling import Spelling
from mull.models import IteratedModel, LanguageModel


@dataclass
class Row:
    """A line, how many tokens it may still get, and what is kept of it."""

    line: Line
    left: int
    ids: list[int] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Asked:
    """A call of `write`: how rows are written, and the ids that they stop at."""

    manner: Manner
    depth: Depth
    ends: frozenset[int]
    before: Before | None
    after: After | None


class FolderSolver(Solver, Shared):
    """See the head of this file.

    Args:
        model: with a tokenizer, as `mull.load` gives it; left in the mode it is in.
        marks: the texts that structure answers; each that is used must be one token of the tokenizer.
        batch_size: rows that are written at once.

    Raises:
        ValueError: a model without a tokenizer, or one that was trained without traces.
    """

    def __init__(self, model: LanguageModel, marks: Marks | None = None, batch_size: int = 64) -> None:
        if model.tokenizer is None:
            raise ValueError("the model has no tokenizer, so it writes no text: save the folder with one")
        self.model, self.marks, self.meter, self.batch_size = model, marks or Marks(), Meter(), batch_size
        self.reader = Reader(model, batch_size)
        self.spelling = Spelling(model.tokenizer, self.marks)
        if self.marks.chain not in self.spelling.ids:
            raise ValueError(
                f"the tokenizer of this model has no {self.marks.chain}: it was trained without traces, so there is "
                "nothing for strategies to write; train on a task with styles, or use mull generate"
            )
        self.stops = frozenset(stop_ids(model, None))

    # Branches -----------------------------------------------------------------------------------------------------

    def begin(self, prompt: str, key: Key = ()) -> Branch:
        ids = self.spelling.encoded(prompt, opening=True)
        check_prompt(self.model, integers([ids], "prompt_ids"), None)
        return Branch(prompt, key, memory=Memory(tuple(ids), meter=self.meter))

    def room(self, branch: Branch) -> int:
        return self.model.config.max_length - len(branch.memory.ids)

    def append(self, branches: Sequence[Branch], text: str) -> list[Branch]:
        new, limit = self.spelling.encoded(text, opening=False), self.model.config.max_length
        found = []
        for branch in branches:
            if len(new) > self.room(branch):
                raise ValueError(
                    f"{text!r} needs {len(new)} tokens and there is room for {self.room(branch)}: the model's "
                    f"max_length is {limit}, prompt and answer together"
                )
            tokens, ids = list(branch.tokens), list(branch.memory.ids)
            for token in new:
                tokens.append(Token(self.spelling.piece(ids, token), token, drawn=False))
                ids.append(token)
            memory = branch.memory.grown(ids)
            found.append(replace(branch, tokens=tuple(tokens), ended=len(ids) >= limit, memory=memory))
        return found

    def shortened(self, branch: Branch, tokens: int) -> Branch:
        memory = branch.memory.cut(len(branch.memory.ids) - len(branch.tokens) + tokens)
        return replace(branch, tokens=branch.tokens[:tokens], ended=False, memory=memory)

    def first_tokens(self, text: str) -> list[int]:
        return [self.spelling.mark(text)]

    def random_text(self, key: Key) -> str:
        return self.spelling.random(key)

    # Writing ------------------------------------------------------------------------------------------------------

    def depth(self, manner: Manner) -> Depth:
        return self.model.check_depth(manner.iterations), choose_exit(self.model, manner.exit)

    def check(self, manner: Manner, marks: Sequence[str] = ()) -> None:
        self.depth(manner)
        manner.draw()
        for mark in marks:
            self.spelling.mark(mark)

    def most_iterations(self, manner: Manner) -> int | None:
        return self.depth(manner)[0] if isinstance(self.model, IteratedModel) else None

    def write(
        self,
        branches: Sequence[Branch],
        manner: Manner,
        until: Sequence[str] = (),
        limit: int | None = None,
        before: Before | None = None,
        after: After | None = None,
    ) -> list[Branch]:
        ends = frozenset(self.spelling.mark(mark) for mark in until)
        asked = Asked(manner, self.depth(manner), ends, before, after)
        most = manner.limit if limit is None else limit
        found = forked(branches)
        rows = {}
        for place, branch in enumerate(found):
            left = min(most - len(branch.tokens), self.room(branch))
            if left > 0 and not branch.ended:
                rows[place] = Row(Line(branch), left)
        self.reader.read([row.line.branch.memory for row in rows.values()], asked.depth)
        for first in range(0, len(rows), self.batch_size):
            batch = list(rows)[first : first + self.batch_size]
            written = self.write_rows([rows[place] for place in batch], asked)
            for place, branch in zip(batch, written, strict=True):
                found[place] = branch
        for row in rows.values():
            row.line.branch.memory.meter.add(calls=1)
        return [branch if self.room(branch) else replace(branch, ended=True) for branch in found]

    @torch.inference_mode()
    def write_rows(self, rows: Sequence[Row], asked: Asked) -> list[Branch]:
        """Write on behind branches that have been read."""
        memories = [row.line.branch.memory for row in rows]
        held = [memory.held[asked.depth] for memory in memories]
        for row, memory, read in zip(rows, memories, held, strict=True):
            row.ids, row.rewards = list(memory.ids), list(read.rewards)
        session = gathered(memories, asked.depth)
        logits = torch.stack([read.logits for read in held if read.logits is not None])
        used, moved = [read.used for read in held], [read.residual for read in held]
        writing, done = list(range(len(rows))), dict[int, Branch]()
        while True:
            tokens = self.draw([rows[place].line for place in writing], logits, asked.manner, asked.before, asked.after)
            log_p = logits.double().log_softmax(dim=-1)
            stays = []
            for at, (place, token) in enumerate(zip(writing, tokens, strict=True)):
                row = rows[place]
                text, chance = self.spelling.piece(row.ids, token), float(log_p[at, token])
                row.line.new.append(Token(text, token, chance, True, used[at], moved[at]))
                row.ids.append(token)
                memories[place].meter.add(tokens=1)
                ended = token in self.stops
                if ended or token in asked.ends or len(row.line.new) >= row.left:
                    alone = session if session.batch_size == 1 else session.fork([at])
                    rewards = tuple(row.rewards)
                    read = Held(alone, 0, len(row.ids) - 1, logits[at], used[at], moved[at], rewards)
                    done[place] = self.stopped(row, read, asked.depth, ended)
                else:
                    stays.append(at)
            if not stays:
                return [done[place] for place in range(len(rows))]
            if len(stays) < len(writing):
                session, writing = session.fork(stays), [writing[at] for at in stays]
            last = torch.tensor([[rows[place].ids[-1]] for place in writing])
            out, residual = self.reader.think(session, last, [memories[place] for place in writing])
            logits, used = out.logits[:, -1], out.iterations[:, -1].tolist()
            moved = last_moves(residual, len(writing))
            for place, reward in zip(writing, rewards_of(out) or [], strict=False):
                rows[place].rewards += reward

    def stopped(self, row: Row, held: Held, depth: Depth, ended: bool) -> Branch:
        """The branch of a row that stops, its last token not read yet."""
        memory = row.line.branch.memory.grown(row.ids)
        memory.held[depth] = held
        return replace(row.line.branch, tokens=tuple(row.line.tokens), ended=ended, memory=memory)

    # Scoring ------------------------------------------------------------------------------------------------------

    @property
    def refuses_score(self) -> str | None:
        return None if self.model.config.value_head else super().refuses_score

    def score(self, branches: Sequence[Branch], manner: Manner) -> list[float]:
        if self.refuses_score:
            raise ValueError(self.refuses_score)
        depth = self.depth(manner)
        unread = [branch.memory for branch in branches if not branch.memory.is_scored(depth)]
        self.reader.read(unread, depth)
        for memory in unread:
            memory.meter.add(calls=1)
        return [branch.memory.held[depth].rewards[len(branch.memory.ids) - 1] for branch in branches]
