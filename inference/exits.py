"""Exit rules: when has a position thought long enough?

One contract. After every iteration a rule looks at a `Thought` - the states of N positions before and after it, and
answers on demand - and gives each position a value; a position whose value is below the rule's threshold leaves.

    latent        ||s - s'|| / ||s||                       relative change of the state
    acceleration  max of the last two ||d - d'|| / ||s||    d = s - s': two small changes of change (arXiv 2509.23314)
    kl            KL(p || p')                              change of the answer
    entropy       |H(p) - H(p')|                           change of its entropy
    argmax        -(checks with the same best token)       threshold -4 leaves after 5 in a row
    confidence    1 - max p                                mass not on the best token
    gate          prod of (1 - exit gate)                  mass not yet halted (Ouro, arXiv 2510.25741, eq. of stage I)
    fixed         infinite before n iterations, then 0      n iterations for all; threshold n

A prime is the iteration before; for rules that read an answer, the check before, which `every` and `minimum` move
further back. latent, acceleration, gate and fixed cost next to nothing; the others read an answer out, which is a coda
and a head for every check. In a prompt these read all positions at the same count, so that a
position's answer there is not the one it would get token by token; the others are the same either way.

Deviations: the two-scale rule is stated on ||d - d'||; ours divides by ||s||, so that a threshold means the same at any
width. The public reference has KL(p' || p); ours weighs by the newer answer.

Shapes: N positions, D model width, V vocabulary.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mull.inference.written import filled
from mull.inference.written import parse as parse_written
from mull.models.output import relative, relative_change
from mull.models.precision import wide
from mull.models.registry import Registry

Memory = dict[str, Tensor]  # what a rule remembers of each position from check to check, (N, ...)


@dataclass(frozen=True)
class Thought:
    """One iteration of N positions.

    Attributes:
        count: iterations so far, this one included.
        state: (N, D), after it.
        previous: (N, D), before it.
        logits: gives (N, V) when called; costs a coda and a head.
        halt: gives the exit gate's (N,) logit when called; cheap.
        memory: of the rule that is asked; empty at first.
    """

    count: int
    state: Tensor
    previous: Tensor
    logits: Callable[[], Tensor]
    halt: Callable[[], Tensor]
    memory: Memory


@dataclass(frozen=True)
class Exit(ABC):
    """A rule. Subclasses say what the value of a position is.

    Args:
        threshold: a position leaves when its value is below it.
        minimum: iterations before which nobody leaves.
        every: positions leave only at minimum, minimum + every, ...
    """

    threshold: float
    minimum: int = 1
    every: int = 1

    name: ClassVar[str]
    example: ClassVar[str]  # how it is written
    needs_gate: ClassVar[bool] = False  # asks the model's exit gate
    reads_logits: ClassVar[bool] = False  # costs a coda and a head per check, and is asked at checks only
    span: ClassVar[tuple[float, float] | None] = (1e-6, 10.0)  # where measure/calibrate.py looks for the threshold

    @classmethod
    def from_text(cls, text: str) -> Exit:
        return filled(cls, f"exit {cls.name}", text, cls.example)

    def __post_init__(self) -> None:
        if math.isnan(self.threshold):
            raise ValueError(f"exit {self.name}: threshold nan is not a number; write {self.example}")
        for field in ("minimum", "every"):
            if getattr(self, field) < 1:
                raise ValueError(f"exit {self.name}: {field} must be at least 1, not {getattr(self, field)}")

    @abstractmethod
    def value(self, thought: Thought) -> Tensor:
        """(N,), and what is to be remembered goes into thought.memory; infinite while it is too early to tell."""

    def checks(self, count: int) -> bool:
        """Whether positions may leave after `count` iterations."""
        return count >= self.minimum and (count - self.minimum) % self.every == 0

    def recall(self, thought: Thought, name: str, like: Tensor, first: float) -> Tensor:
        """What is remembered under a name; before the first look `first`, in the shape and type of `like`."""
        kept = thought.memory.get(name)
        return torch.full_like(like, first) if kept is None else kept

    def leaves(self, thought: Thought) -> Tensor:
        """Which positions leave, (N,) bool."""
        return self.value(thought) < self.threshold


EXITS: Registry[type[Exit]] = Registry("exit")


def exit_rule(rule: type[Exit]) -> type[Exit]:
    """A decorator that registers a rule under its name."""
    return EXITS.register(rule.name)(rule)


@exit_rule
class Latent(Exit):
    """Relative change of the state. The public reference's choice, at 0.03; needs a loop that comes to rest."""

    name, example = "latent", "latent:0.03"

    def value(self, thought: Thought) -> Tensor:
        return relative_change(thought.state, thought.previous)


@exit_rule
class Acceleration(Exit):
    """Two small changes of the change in a row: also leaves from a steady drift, where `latent` would not."""

    name, example = "acceleration", "acceleration:0.02"

    def value(self, thought: Thought) -> Tensor:
        change = thought.state - thought.previous
        turned = change - self.recall(thought, "change", change, math.inf)
        now = relative(turned, thought.state)
        two = torch.maximum(now, self.recall(thought, "now", now, math.inf))
        thought.memory.update(change=change, now=now)
        return two


@exit_rule
class KL(Exit):
    """Change of the answer's distribution in nats."""

    name, example, reads_logits = "kl", "kl:0.001", True

    def value(self, thought: Thought) -> Tensor:
        log_p = wide(thought.logits()).log_softmax(-1)
        before = self.recall(thought, "log_p", log_p, -math.inf)  # no mass anywhere: infinitely far from any answer
        thought.memory["log_p"], p = log_p, log_p.exp()
        return torch.where(p > 0, p * (log_p - before), 0.0).sum(-1)


@exit_rule
class Entropy(Exit):
    """Change of the answer's entropy in nats. Two different answers of equal entropy look alike to it."""

    name, example, reads_logits = "entropy", "entropy:0.001", True

    def value(self, thought: Thought) -> Tensor:
        log_p = wide(thought.logits()).log_softmax(-1)
        entropy = -(log_p.exp() * log_p).sum(-1)
        before = self.recall(thought, "entropy", entropy, math.inf)
        thought.memory["entropy"] = entropy
        return (entropy - before).abs()


@exit_rule
class Argmax(Exit):
    """How many checks in a row the best token has stayed the same, negated."""

    name, example, reads_logits = "argmax", "argmax:-4", True
    span = (-64.0, 0.0)

    def value(self, thought: Thought) -> Tensor:
        best = thought.logits().argmax(-1)
        same = best == self.recall(thought, "best", best, -1)
        run = torch.where(same, self.recall(thought, "run", best, 0), 0) + 1
        thought.memory.update(best=best, run=run)
        return -run.float()


@exit_rule
class Confidence(Exit):
    """Mass that is not on the best token. Says nothing of whether more thought would change the answer."""

    name, example, reads_logits = "confidence", "confidence:0.1", True
    span = (1e-6, 1.0)

    def value(self, thought: Thought) -> Tensor:
        return 1 - wide(thought.logits()).softmax(-1).amax(-1)


@exit_rule
class Gate(Exit):
    """Mass that the learned exit gate has not yet halted; threshold 0.5 leaves when half is. Needs a model with one."""

    name, example, needs_gate = "gate", "gate:0.5", True
    span = (1e-6, 1.0)

    def value(self, thought: Thought) -> Tensor:
        halt = torch.sigmoid(wide(thought.halt()))
        left = self.recall(thought, "left", halt, 1.0) * (1 - halt)
        thought.memory["left"] = left
        return left


@exit_rule
class Fixed(Exit):
    """The same number of iterations for every position: what the other rules are to be compared with."""

    name, example, span = "fixed", "fixed:8", None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threshold < 1:  # a position can leave after an iteration only, and would never do so
            raise ValueError(f"exit fixed: the number of iterations must be at least 1, not {self.threshold:g}")

    def value(self, thought: Thought) -> Tensor:
        return torch.full_like(thought.state[:, 0], math.inf if thought.count < self.threshold else 0.0)


def as_exit(given: str | Exit | None) -> Exit | None:
    """The rule, parsed if it is written out. Raises ValueError for what is none."""
    rule = parse(given) if isinstance(given, str) else given
    if rule is not None and not isinstance(rule, Exit):
        raise ValueError(f"exit must be written as latent:0.03, or be an Exit, not {rule!r}")
    return rule


def parse(text: str) -> Exit:
    """`latent:0.03` or `kl:0.001,minimum=2,every=2` -> the rule. Raises ValueError that names what is known."""
    return parse_written(text, EXITS)
