"""A model as it is served: its name, how long its efforts think, and which rows of it may share batches."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from mull.checkpoints import load, load_tokenizer
from mull.checkpoints.card import Told, told_in
from mull.checkpoints.efforts import read_efforts
from mull.checkpoints.names import folder_of
from mull.checkpoints.store import present_card
from mull.inference.checks import routing_options
from mull.inference.early_exit import choose_exit
from mull.inference.exits import EXITS
from mull.inference.generate import stop_ids
from mull.inference.serve.efforts import efforts_of
from mull.inference.serve.limits import MAX_TRACED, Limits
from mull.inference.serve.thinking import AtOnce, ByCount, ByRule, Way
from mull.inference.written import summary
from mull.models import IteratedModel, LanguageModel
from mull.models.config import Capacity
from mull.models.selection import check_capacity


class Sharing(NamedTuple):
    """Who may share a batch: rows with the same `key`, which think in the same `way`; `depth` is what a row of them has
    at most."""

    key: tuple[Any, ...]
    way: Way
    depth: int


@dataclass(frozen=True)
class Served:
    """See the head of this file.

    Args:
        name: what requests call it.
        model: in eval mode.
        efforts: iterations by effort; empty where there is no loop.
        told: what its card says: what it is for, and an example.
    """

    name: str
    model: LanguageModel
    tokenizer: Tokenizer
    efforts: dict[str, int]
    told: Told = field(default_factory=Told)
    created: int = field(default_factory=lambda: int(time.time()))

    @staticmethod
    def of(path: str | Path, limits: Limits, device: str = "cpu", dtype: Any = None) -> Served:
        """The model of a folder, ready to write.

        Raises:
            FileNotFoundError, ValueError: there is none, it has no tokenizer, or it cannot write.
        """
        folder = folder_of(path)
        model = load(folder, device, dtype)
        model.check_order()
        mean = model.config.default_iterations
        table = {} if mean is None else efforts_of(mean, read_efforts(folder), limits.max_iterations)
        tokenizer = load_tokenizer(folder) if model.tokenizer is None else model.tokenizer
        return Served(folder.resolve().name, model, tokenizer, table, told_by(folder))

    @property
    def stops(self) -> frozenset[int]:
        """Tokens that end an answer."""
        return frozenset(stop_ids(self.model, None))

    @property
    def facts(self) -> dict[str, Any]:
        """What those who show the model ask for: its purpose, an example of a prompt, how much a trace may hold, and
        the exit rules that it can follow, each with a threshold to begin with."""
        exits = []
        for rule in EXITS.values():
            with suppress(ValueError):
                chosen = choose_exit(self.model, rule.example)
                if chosen is not None and rule.span is not None:  # others have no threshold to choose
                    exits.append({"name": rule.name, "threshold": chosen.threshold, "words": summary(rule)})
        return {"purpose": self.told.purpose, "prompt": self.told.prompt, "max_traced": MAX_TRACED, "exits": exits}

    def sharing(self, iterations: int | None, exit: str | None, capacity: Capacity | None) -> Sharing:
        """With whom a row of these may share batches.

        Raises:
            ValueError: what this model cannot follow.
        """
        rule = choose_exit(self.model, exit)
        routing_options(self.model, capacity=capacity)
        if capacity is not None:
            capacity = check_capacity(capacity, (iterations or 1) - 1)
        if rule is not None:
            assert iterations is not None  # only models with a core have rules
            return Sharing((self.name, "rule", exit, iterations), ByRule(rule), iterations)
        if not isinstance(self.model, IteratedModel):
            return Sharing((self.name, "at once", iterations, capacity), AtOnce(iterations, capacity), iterations or 1)
        assert iterations is not None
        deepest = 1 << (iterations - 1).bit_length()  # counts up to the next power of two: nobody waits twice as long
        return Sharing((self.name, "count", deepest), ByCount(), deepest)

    def bytes_per_position(self, depth: int) -> int:
        """Of keys and values at so many iterations."""
        count = None if self.model.config.default_iterations is None else depth
        return self.model.config.cache_bytes_per_token(count, self.model.dtype.itemsize)


def told_by(folder: Path) -> Told:
    """What the card of a folder says; nothing where there is none that can be read."""
    with suppress(OSError, ValueError):
        return told_in(present_card(folder))
    return Told()
