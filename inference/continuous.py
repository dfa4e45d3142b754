"""Continuous depth batching: rows at different iterations of different tokens share one call of the core.

Scheduling by iteration instead of by token (arXiv 2608.09444). All rows that still write are in every call:

    repeat:  s_b <- think(s_b) at iteration i_b of row b's token, i_b <- i_b + 1        all rows together
             rows whose rule says leave, or whose i_b is the limit, together, when enough of them wait:
                 answer (coda, head), sample their next token, enter the prelude with it, begin at i_b = 0
                 or drop out, if that token ends them

Where no row waits, the calls of the core are as few as can be: the largest sum of a row's iterations. In lockstep
(`generate.positions`, the twin in the tests) every token takes as many calls as its slowest row. But rows that leave
one by one are read one by one, and a coda and a prelude cost a call of each layer, however few rows there are. With
`patience` rows that have left wait, uncomputed, until they are such a share of the rows: 0 is the schedule above, 1
is lockstep. Where a core is no larger than what stands around it, lockstep is sooner.

What a row reads is its own: of its earlier positions, which have all left, the keys at its own iteration
(`cache.hold`). So tokens and iterations are those of the row alone, whatever the patience; of sampled text the
distribution is, since draws share one generator. A rule that reads logits is charged for the rows that check, and no
answer is read twice.

Deviations from the paper: prompts are read before, by `think_until`; no new prompt takes the place of a row that ends.

Shapes: B rows of the cache, N of them that still write, one token each, N' some of these, K that wait to be read, D
model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache as once
from functools import partial

import torch
from torch import Tensor

from mull.inference.adaptive import look
from mull.inference.exits import Exit, Memory
from mull.inference.lockstep import Round, Rounds
from mull.models import Cache, RecurrentDepthTransformer
from mull.models.cache import Cells
from mull.models.layers import Frame
from mull.models.loop import Think, iterate


@torch.inference_mode()
def continuous(
    model: RecurrentDepthTransformer,
    last: Tensor,
    cache: Cache,
    iterations: int | None,
    exit: Exit,
    room: int,
    choose: Callable[[Tensor], Tensor],
    start: Tensor | None = None,
    patience: float = 0.0,
) -> Rounds:
    """Rounds of the rows whose positions have left; the others get nothing in them.

    Args:
        last: (B,), the last token of each row, not in the cache yet.
        cache: of policy deepest or shared, holds what stands before.
        iterations: the most that any position gets; None is the config's count.
        exit: the rule.
        room: tokens that each row may still write.
        choose: (K, V) logits -> (K,) tokens.
        start: (B, D), the state of each row's position before, for a warm start; None is the model's own start.
        patience: share of the rows that must wait before these are read together; 0 lets none wait, 1 is lockstep.
    """
    limit = model.config.mean_iterations if iterations is None else iterations
    running = Running(model, cache, exit, limit, last, start)
    loop, sent = iterate(running.think, running.current, limit * room * len(last)), None
    while True:
        _, state = loop.send(sent)
        sent = None
        if not running.advance(state):
            continue
        if running.turn(patience):
            waiting, logits = running.read_waiting()
            tokens = choose(logits)
            got = torch.zeros_like(running.count).index_copy(0, waiting, tokens)
            keep = yield Round(got[:, None], running.waits.long(), running.count[:, None].clone())
            everybody = torch.ones_like(running.waits)
            goes_on = everybody if keep is None else (~everybody).index_fill(0, keep, True)
            running.replace(waiting, tokens, goes_on[waiting], warm=start is not None)
        sent = running.begin()


class Running:
    """N rows, each at an iteration of its own of a token of its own.

    Args:
        tokens: (N,), which they begin with, each behind what its row of the cache holds.
        start: (N, D), or None for the model's own start.
    """

    def __init__(
        self,
        model: RecurrentDepthTransformer,
        cache: Cache,
        exit: Exit,
        limit: int,
        tokens: Tensor,
        start: Tensor | None,
    ) -> None:
        self.model, self.cache, self.exit, self.limit = model, cache, exit, limit
        device = tokens.device
        self.rotation = model.rotation(torch.arange(cache.max_length, device=device))  # of every column
        self.rows = torch.arange(len(tokens), device=device)  # (N,) ascending, which of the cache's
        self.columns = torch.tensor(cache.lengths, device=device)  # (N,), where each token stands
        self.count = torch.zeros_like(self.rows)  # (N,), iterations of it so far
        self.waits = torch.zeros_like(self.rows, dtype=torch.bool)  # (N,), whether it has left and is not read yet
        self.memory: Memory = {}
        injected = model.enter(tokens[:, None], self.frame(self.rows))
        self.prepared = model.prepare(injected)
        self.state = model.draw_state(injected, None) if start is None else start[:, None].clone()
        self.logits = self.state.new_zeros(len(tokens), model.config.vocab_size)  # of those that wait, if a rule reads
        self.begin()

    def frame(self, some: Tensor) -> Frame:
        """Where the tokens of some of the rows stand, (N',) indices."""
        rows, columns = self.rows[some], self.columns[some]
        rotation = None if self.rotation is None else self.rotation[columns][:, None]
        end = int(columns.max()) + 1
        mask = (columns[:, None] >= torch.arange(end, device=columns.device))[:, None, None]
        cells = Cells(rows, columns, None, rows if len(rows) < self.cache.batch_size else None, end)
        return Frame(columns[:, None], rotation, mask, self.cache, cells)

    def begin(self) -> tuple[Think, Tensor]:
        """How the loop goes on, with the rows that do not wait."""
        self.live = (~self.waits).nonzero().flatten()
        self.current = self.state[self.live]
        self.look_up()
        self.step = self.model.thinker(self.prepared[self.live], self.frame(self.live))
        return self.think, self.current

    def look_up(self) -> None:
        """At which iteration the rows are that do not wait: one for all where they agree, which saves copying keys."""
        places = self.count[self.live]
        low, high = places.aminmax()
        self.place = int(low) if bool(low == high) else places

    def think(self, state: Tensor, _: int) -> Tensor:
        """(N', 1, D) -> (N', 1, D), every row at its own iteration."""
        return self.step(state, self.place)

    def advance(self, state: Tensor) -> bool:
        """Take in what an iteration has come to, (N', 1, D); whether any row leaves."""
        exit, live, previous, self.current = self.exit, self.live, self.current, state
        self.count[live] += 1
        self.look_up()
        count = self.count[live]
        last = count == self.limit
        due = exit.checks(count) | last
        if exit.reads_logits:  # asked when due, and about the due rows alone
            due = due.nonzero().flatten()
            if not len(due):
                return False
            live, state, previous, count, last = live[due], state[due], previous[due], count[due], last[due]
        memory = {name: kept[live] for name, kept in self.memory.items()}
        read = once(partial(self.read, live, state))
        leave = exit.leaves(look(self.model, count, state, previous, read, memory))[0] | last
        self.memory = exit.remember(self.memory, live, len(self.rows), memory)
        if exit.reads_logits:
            self.logits[live] = read()
        else:
            leave &= due
        if not bool(leave.any()):
            return False
        self.state[self.live] = self.current
        self.waits[live[leave]] = True
        for depth in count[leave].unique().tolist():
            stopped = live[leave & (count == depth)]
            self.cache.hold(self.rows[stopped], self.columns[stopped], depth)
        return True

    def read(self, some: Tensor, state: Tensor) -> Tensor:
        """The answers of some of the rows, (N', V)."""
        return self.model.read(state, self.frame(some)).logits[:, -1]

    def turn(self, patience: float) -> bool:
        """Whether as many rows wait as are to be read together."""
        return bool(self.waits.float().mean() >= patience)

    def read_waiting(self) -> tuple[Tensor, Tensor]:
        """The rows that wait, (K,) indices, and their answers (K, V)."""
        waiting = self.waits.nonzero().flatten()
        if self.exit.reads_logits:
            return waiting, self.logits[waiting]
        return waiting, self.read(waiting, self.state[waiting])

    def replace(self, waiting: Tensor, tokens: Tensor, goes_on: Tensor, warm: bool) -> None:
        """Let rows that wait, (K,) indices, begin anew with these tokens, or end where `goes_on` says no."""
        held = set(self.rows[waiting].tolist())
        self.cache.advance([int(row in held) for row in range(self.cache.batch_size)])
        self.columns[waiting] += 1
        self.count[waiting], self.waits[waiting] = 0, False
        self.memory = self.exit.forget(self.memory, waiting)
        begins = waiting[goes_on]
        if len(begins):
            injected = self.model.enter(tokens[goes_on, None], self.frame(begins))
            self.prepared[begins] = self.model.prepare(injected)
            if not warm:
                self.state[begins] = self.model.draw_state(injected, None)
        if len(begins) < len(waiting):
            stays = torch.ones_like(self.waits).index_fill(0, waiting[~goes_on], False)
            for name in ("rows", "columns", "count", "waits", "prepared", "state", "logits"):
                setattr(self, name, getattr(self, name)[stays])
            self.memory = {name: kept[stays] for name, kept in self.memory.items()}
