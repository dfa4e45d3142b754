"""Changing the thought on the way: states of other runs put in place of a run's own, and noise.

    s_i <- change(s_i)   at the chosen positions, after the iterations `iteration` .. `last`; 0 is before the first

Causal tracing and activation patching are this: what follows is computed as ever, so a difference in the answer was
caused by the change. A loop that comes to rest often mends a change that is made once, because the input re-enters
every iteration; a change that is held, iteration after iteration, shows what reads the position.

Shapes: B batch, T positions, D model width, n changed positions, m iterations of a change.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from operator import index
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mull.models.loop import Think, check_count

if TYPE_CHECKING:
    from mull.inference.tracing.trace import Trace


MAX_SEED = 2**40


class Intervention(ABC):
    """A change of the states of some positions after some iterations.

    Attributes:
        iteration: the first count after which it is made.
        positions: those that are changed; None means all of them.
    """

    iteration: int
    positions: Sequence[int] | None

    @property
    @abstractmethod
    def last(self) -> int:
        """The last count after which it is made."""

    @abstractmethod
    def changed(self, states: Tensor, count: int) -> Tensor:
        """States (B, n, D) of the positions after `count` iterations -> what is put in their place."""

    def check(self, shape: torch.Size, iterations: int) -> None:
        """Raise a ValueError if it cannot be made in states of this shape (B, T, D) that see so many iterations."""
        name = type(self).__name__
        self.check_span()
        if not 0 <= self.iteration <= self.last:
            raise ValueError(f"{name}: iterations {self.iteration} .. {self.last} are none; give 0 or more, in order")
        if self.last > iterations:
            raise ValueError(
                f"{name} is for the iterations {self.iteration} .. {self.last}, and the run ends at {iterations}"
            )
        if self.positions is not None:
            places = places_of(f"{name}: position", self.positions, shape[1])
            if len({*places}) < max(1, len(places)):
                raise ValueError(f"{name}: positions must name one position or more, each once, not {places}")

    def check_span(self) -> None:
        """Raise a ValueError for a count that is no integer."""
        for word, count in (("iteration", self.iteration), ("last", self.last)):
            check_count(f"{type(self).__name__}: {word}", count, least=0)

    def apply(self, state: Tensor, count: int) -> Tensor:
        """The state (B, T, D) after `count` iterations, with the change where it is due."""
        if not self.iteration <= count <= self.last:
            return state
        if self.positions is None:
            return self.changed(state, count).to(state).expand_as(state)
        places = torch.tensor(list(self.positions), dtype=torch.int64, device=state.device)
        new = self.changed(state.index_select(1, places), count).to(state)
        return state.index_copy(1, places, new.expand(len(state), -1, -1))


@dataclass(frozen=True)
class Patch(Intervention):
    """Given states in place of the run's own.

    Args:
        iteration: the first count after which states are replaced; 0 replaces the initial state.
        positions: n positions, from 0; None means all.
        states: (B, n, D), put in once; or (B, m, n, D), one for each of m iterations from the first on. B may be 1.
    """

    iteration: int
    positions: Sequence[int] | None
    states: Tensor

    def __post_init__(self) -> None:
        if not isinstance(self.states, Tensor):
            raise ValueError(f"Patch: states must be a tensor, not {type(self.states).__name__}")

    @staticmethod
    def of(trace: Trace, positions: Sequence[int] | None = None, iteration: int = 1, last: int | None = None) -> Patch:
        """The states of another run, which must have been traced with keep_states=True.

        Args:
            trace: the other run.
            positions: those to take over; None means all.
            iteration: after which iteration they are put in, 1 or more; it is the other run's iteration too.
            last: the last iteration after which they are put in again; None puts them in once. `last=iterations`
                holds them to the end.
        """
        if trace.states is None:
            raise ValueError("the trace to patch from kept no states: trace it with keep_states=True")
        end = iteration if last is None else last
        for name, count in (("iteration", iteration), ("last", end)):
            if check_count(name, count) > len(trace.counts):
                raise ValueError(f"{name}={count} is beyond the {len(trace.counts)} iterations that were traced")
        if end < iteration:
            raise ValueError(f"last={end} comes before iteration={iteration}")
        states = trace.states[:, iteration - 1 : end]
        if positions is None:
            return Patch(iteration, None, states)
        places = places_of("the trace to patch from: position", positions, states.shape[2])
        index = torch.tensor(places, dtype=torch.int64, device=states.device)
        return Patch(iteration, places, states.index_select(2, index))

    @property
    def last(self) -> int:
        return self.iteration + (self.states.shape[1] - 1 if self.states.dim() == 4 else 0)

    def check(self, shape: torch.Size, iterations: int) -> None:
        super().check(shape, iterations)
        places = shape[1] if self.positions is None else len(self.positions)
        given = self.states.shape
        if len(given) not in (3, 4) or given[0] not in (1, shape[0]) or given[-2:] != (places, shape[2]):
            raise ValueError(
                f"Patch: states must have shape ({shape[0]}, {places}, {shape[2]}), batch, positions and width, or "
                f"with an axis of iterations behind the first, not {tuple(given)}"
            )

    def changed(self, states: Tensor, count: int) -> Tensor:  # noqa: ARG002
        return self.states if self.states.dim() == 3 else self.states[:, count - self.iteration]


@dataclass(frozen=True)
class Noise(Intervention):
    """Normal noise on top of the states, in proportion to how large each of them is.

    Args:
        iteration: the first count after which noise is added; 0 is the initial state.
        scale: the noise's standard deviation as a share of the root mean square of each position's state; a state of
            zero, such as the initial one of most models, gets none.
        positions: from 0; None means all.
        until: the last count after which it is added; None means once.
        seed: of the draws. A position's noise depends on the seed, the count and its place among the positions.
    """

    iteration: int
    scale: float
    positions: Sequence[int] | None = None
    until: int | None = None
    seed: int = 0

    @property
    def last(self) -> int:
        return self.iteration if self.until is None else self.until

    def __post_init__(self) -> None:
        self.check_span()
        if not isinstance(self.scale, Real) or not 0 <= self.scale < math.inf:
            raise ValueError(f"Noise: scale must be a finite number, 0 or more, not {self.scale!r}")
        if check_count("Noise: seed", self.seed, least=-MAX_SEED) > MAX_SEED:
            raise ValueError(f"Noise: seed {self.seed} is above the limit of {MAX_SEED:,}")

    def changed(self, states: Tensor, count: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + count)
        drawn = torch.randn(states.shape, generator=generator).to(states)
        return states + self.scale * states.square().mean(dim=-1, keepdim=True).sqrt() * drawn


def places_of(name: str, positions: Sequence[int], length: int) -> list[int]:
    """Positions of a row of so many as ints. Raises ValueError for one that lies outside, and for what is none."""
    if not isinstance(positions, Iterable):
        raise ValueError(f"{name}s must be a list, not {positions!r}; write one as [{positions!r}]")
    places = []
    for place in positions:
        try:
            places.append(index(place))
        except TypeError:
            raise ValueError(f"{name} {place!r} is no integer") from None
        if not 0 <= places[-1] < length:
            raise ValueError(f"{name} {place} lies outside 0 .. {length - 1}")
    return places


def intervened(think: Think, changes: Sequence[Intervention]) -> Think:
    """An iteration that is followed by the changes that are due."""

    def think_and_change(state: Tensor, index: int) -> Tensor:
        return changed(think(state, index), index + 1, changes)

    return think_and_change


def changed(state: Tensor, count: int, changes: Sequence[Intervention]) -> Tensor:
    """The state after iteration `count`, (B, T, D), with each of the changes made to it in their order."""
    for change in changes:
        state = change.apply(state, count)
    return state
