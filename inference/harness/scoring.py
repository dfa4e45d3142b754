"""How likely continuations are, at several iteration counts out of one unroll.

    row   = context and continuation, but for the last token      what the model reads
    score = sum of log p(token | what stands before it)           over the tokens of the continuation

Pairs with one row share it: the choices of a question that are one token long cost one row together. Rows are sorted by
their length and padded on the right, where nothing attends to, so that a score depends on its own pair alone. Only the
logits of scored positions are kept, and of these two numbers a pair.

Shapes: B rows, T positions of the longest, N scored tokens, V vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mull.inference.checks import routing_options
from mull.inference.early_exit import choose_exit, think_until
from mull.inference.exits import Exit
from mull.inference.mode import evaluating
from mull.models import LanguageModel, ModelOutput, Reading
from mull.models.config import Capacity
from mull.models.loop import check_count
from mull.models.precision import wide


class Pair(NamedTuple):
    """What is read and what is scored, as token ids; neither is empty."""

    context: Sequence[int]
    scored: Sequence[int]


class Score(NamedTuple):
    """The log-likelihood of a continuation in nats, and whether it is what greedy decoding would write."""

    loglikelihood: float
    greedy: bool


@dataclass
class Spent:
    """Iterations of positions so far, where an exit rule leaves them to each position."""

    iterations: int = 0
    positions: int = 0

    def add(self, used: Tensor) -> None:
        """The counts of some positions, 0 for one that was only filled up."""
        self.iterations += int(used.sum())
        self.positions += int((used > 0).sum())

    @property
    def mean(self) -> float | None:
        return self.iterations / self.positions if self.positions else None


@dataclass(frozen=True)
class Scorer:
    """A model, and how deep it thinks when it scores.

    Args:
        model: any causal family; left in the mode it is in.
        counts: iteration counts, ascending; (None,) for a model without a loop.
        batch_size: rows of a batch.
        exit: a rule that ends thinking early; each count is then a run of its own, and a position's limit.
        capacity: share of tokens that routed passes take; None is the config's.
    """

    model: LanguageModel
    counts: Sequence[int | None]
    batch_size: int = 16
    exit: Exit | None = None
    capacity: Capacity | None = None
    spent: Mapping[int | None, Spent] = field(default_factory=lambda: defaultdict(Spent))

    def __post_init__(self) -> None:
        check_count("batch_size", self.batch_size)
        choose_exit(self.model, self.exit)
        routing_options(self.model, capacity=self.capacity)

    def score(self, pairs: Sequence[Pair]) -> dict[int | None, list[Score]]:
        """The score of each pair, in their order, at every count.

        Raises ValueError for a pair without a context or a continuation, and for a row beyond the model's max_length.
        """
        rows: dict[tuple[int, ...], list[int]] = defaultdict(list)  # which pairs have this row
        for number, pair in enumerate(pairs):
            rows[self.row(pair)].append(number)
        longest_first = sorted(rows, key=lambda row: (-len(row), row))  # memory runs out at once, or not at all
        found: dict[int | None, dict[int, Score]] = {count: {} for count in self.counts}
        for first in range(0, len(longest_first), self.batch_size):
            batch = longest_first[first : first + self.batch_size]
            owned = [rows[row] for row in batch]
            numbers = [number for own in owned for number in own]
            labels = [list(pairs[number].scored) for number in numbers]
            owners = [place for place, own in enumerate(owned) for _ in own]
            for count, scores in scores_of(self.model, batch, owners, labels, self):
                found[count] |= dict(zip(numbers, scores, strict=True))
        return {count: [scores[number] for number in range(len(pairs))] for count, scores in found.items()}

    def row(self, pair: Pair) -> tuple[int, ...]:
        if not pair.context or not pair.scored:
            raise ValueError("a pair needs a context and a continuation of a token or more each")
        row, limit = (*pair.context, *pair.scored[:-1]), self.model.config.max_length
        if len(row) > limit:
            raise ValueError(f"a row has {len(row)} positions, and the model's max_length is {limit}: shorten it")
        return row


@evaluating
@torch.inference_mode()
def scores_of(
    model: LanguageModel,
    rows: Sequence[Sequence[int]],
    owners: Sequence[int],
    labels: Sequence[Sequence[int]],
    how: Scorer,
) -> list[tuple[int | None, list[Score]]]:
    """The scores of the labels at the ends of their rows, at every count.

    Args:
        rows: token ids of B rows.
        owners: for each list of labels its row.
        labels: the tokens that follow the last positions of the row.
    """
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=model.device)
    lengths = torch.tensor([len(row) for row in rows], device=model.device)
    places = [
        (owner, len(rows[owner]) - len(own) + number)
        for owner, own in zip(owners, labels, strict=True)
        for number in range(len(own))
    ]
    row, position = torch.tensor(places, device=model.device).T
    targets = torch.tensor([token for own in labels for token in own], device=model.device)
    pair = torch.tensor([number for number, own in enumerate(labels) for _ in own])
    found = []
    for count, reading in answers(model, ids, how):
        if isinstance(reading, ModelOutput) and how.exit is not None:
            real = torch.arange(width, device=model.device) < lengths[:, None]
            how.spent[count].add(reading.iterations[real])
        logits = wide(reading.logits[row, position])  # (N, V)
        nats = F.cross_entropy(logits, targets, reduction="none").double().cpu()
        wrong = ((logits.argmax(dim=-1) != targets).cpu() | nats.isnan()).double()
        sums = torch.zeros(2, len(labels), dtype=torch.float64).index_add_(1, pair, torch.stack([nats, wrong]))
        found.append((count, [Score(-total, missed == 0) for total, missed in sums.T.tolist()]))
    return found


def answers(model: LanguageModel, ids: Tensor, how: Scorer) -> Iterator[tuple[int | None, Reading]]:
    """What the model answers at every count: out of one unroll, or under an exit rule a run for each."""
    if how.exit is not None:
        return ((count, think_until(model, ids, count, how.exit)) for count in how.counts)
    return model.sweep(ids, how.counts, **routing_options(model, capacity=how.capacity))
