"""IteratedModel: what a model with a loop is, in five verbs; everything that iterates it follows from them.

    e      = enter(tokens)                 what is injected into every iteration
    p      = prepare(e)                    what all iterations need of e, computed once; e itself by default
    s_0    = start(e)                      the state before the first iteration; zero by default
    s_i    = think(s_{i-1}, p),  i = 1 .. R
    answer = read(s_R)                     logits, and the exit gate's logit where there is a gate

A family writes enter, think and read, and start and prepare where the defaults do not do. Forward, the sweep over
iteration counts, exit rules, drafts and wavefronts (inference/decoders/) use these, and `halt` where there is a gate.

Shapes: B batch, T positions of this call, D model width, V vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mull.models.cache import Cache
from mull.models.language_model import LanguageModel, check_read_at
from mull.models.loop import Iterations, Think, check_count, check_counts, deepest, iterate
from mull.models.output import ModelOutput, Reading
from mull.models.positions import Context

Prepared = Any  # a tensor (B, T, ...) or (1, 1, ...), None, or a tuple of such: see `Context.gather`


class IteratedModel(LanguageModel, ABC):
    """A language model whose core is iterated. See the head of this file."""

    # The verbs --------------------------------------------------------------------------------------------------------

    @abstractmethod
    def enter(self, input_ids: Tensor, context: Context) -> Tensor:
        """(B, T) token ids -> what is injected into every iteration, (B, T, D)."""

    def start(self, injected: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The state before the first iteration, in the shape and type of `injected`: zero, or what the family says;
        with a generator a draw, where the family has a random start."""
        return torch.zeros_like(injected)

    def prepare(self, injected: Tensor) -> Prepared:
        """What every iteration makes of the injected input, computed once. It is split by position where positions
        leave the loop one by one, so its tensors begin with (B, T), or with (1, 1) where they are the same for all."""
        return injected

    @abstractmethod
    def think(self, state: Tensor, prepared: Prepared, context: Context, iteration: int) -> Tensor:
        """One iteration: state (B, T, D) -> state. `iteration`, from 0, only says where keys and values are kept."""

    @abstractmethod
    def read(self, state: Tensor, context: Context) -> Reading:
        """The answer in a state (B, T, D)."""

    # What a family may have -------------------------------------------------------------------------------------------

    @property
    def can_halt(self) -> bool:
        """Whether the model has learned to say when it has thought enough."""
        return False

    @property
    def starts_at_random(self) -> bool:
        """Whether `start` draws when it is given a generator."""
        return False

    @property
    def is_noisy(self) -> bool:
        """Whether `disturb` adds something to the state in the present mode, where there is a generator."""
        return False

    def disturb(self, state: Tensor, generator: torch.Generator) -> Tensor:
        """A state after an iteration, with the noise that training adds to it; asked only where `is_noisy`."""
        return state

    def halt(self, state: Tensor) -> Tensor:
        """The exit gate's logit in a state, (B, T)."""
        raise ValueError("the model has no exit gate: train one with exit_gate: true, or use another exit rule")

    def gate_parameters(self) -> list[nn.Parameter]:
        """The parameters of the exit gate; none without one."""
        return []

    # What follows -----------------------------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: Tensor,
        iterations: Iterations | None = None,
        *,
        backprop_iterations: int | None = None,
        state: Tensor | None = None,
        generator: torch.Generator | None = None,
        attention_mask: Tensor | None = None,
        cache: Cache | None = None,
        read_at: Sequence[int] = (),
        checkpoint_iterations: bool = False,
    ) -> ModelOutput:
        """Think for `iterations` and answer. The other arguments are those of every family (language_model.py).

        Args:
            iterations: R >= 1, or (B,) int64 with one count per row; None means the config's default.
            backprop_iterations: gradient through the last k iterations only; None means through all.
            state: (B, T, D), the initial state, owned by the caller; a + b iterations equal a, then b from out.state.
                Floats of any type, on any device, are taken in the type and on the device of the model. With one there
                is nothing to draw: a generator beside it is refused, but where iterations are noisy.
            generator: draws a random initial state, and the noise of iterations where training adds any; without it the
                state starts at its mean, zero, and there is no noise.
            read_at: counts at which to read an answer out of the same unroll (one count for all rows, no cache).
            checkpoint_iterations: keep only the state of each iteration for the gradient, and compute the rest again.

        Returns:
            logits (B, T, V) and state (B, T, D) after the last iteration, iterations (B, T), and `readings` by count.

        Raises:
            ValueError: a count below 1, read_at beyond the count, tensors of the wrong shape, too many positions.
        """
        depth = self.check_depth(iterations, len(input_ids))
        if backprop_iterations is not None:
            check_count("backprop_iterations", backprop_iterations)
        read_at = check_read_at(read_at, depth, cache, "the coda's keys in it belong to the last iteration")
        with torch.set_grad_enabled(torch.is_grad_enabled() and cache is None):
            context = self.context(input_ids, attention_mask, cache, depth)
            readings: dict[int, Reading] = {}
            before: Tensor | None = None
            previous: Tensor | None = None
            loop = self.unroll(input_ids, depth, context, backprop_iterations, state, generator, checkpoint_iterations)
            for count, thought in loop:
                if count in read_at:
                    readings[count] = self.reading(thought, previous, context)
                before, previous = previous, thought
            last = readings[count] if count in readings else self.reading(thought, before, context)
            if cache is not None:
                context.commit(depth if isinstance(depth, int) else None)
        used = depth[:, None] if isinstance(depth, Tensor) else torch.full((1, 1), depth, device=input_ids.device)
        return ModelOutput(
            logits=last.logits,
            exit_logit=last.exit_logit,
            last_two=last.last_two,
            value=last.value,
            state=thought,
            iterations=used.expand(input_ids.shape).to(torch.int64),
            readings=readings,
        )

    def sweep(
        self, input_ids: Tensor, counts: Sequence[int | None], generator: torch.Generator | None = None
    ) -> Iterator[tuple[int | None, Reading]]:
        """As every family's; a generator draws the initial states."""
        wanted = check_counts("iterations", counts)
        if not wanted:
            return
        context, previous = self.context(input_ids), None
        for count, state in self.unroll(input_ids, max(wanted), context, generator=generator):
            if count in wanted:
                yield count, self.reading(state, previous, context)
            previous = state

    def reading(self, state: Tensor, previous: Tensor | None, context: Context) -> Reading:
        """The answer in a state, beside the step that led to it."""
        reading = self.read(state, context)
        return reading if previous is None else replace(reading, last_two=(state, previous))

    def unroll(
        self,
        input_ids: Tensor,
        iterations: Iterations,
        context: Context,
        backprop_iterations: int | None = None,
        state: Tensor | None = None,
        generator: torch.Generator | None = None,
        recompute: bool = False,
    ) -> Iterator[tuple[int, Tensor]]:
        """Enter, then (count, state) after every iteration; see `loop.iterate`."""
        injected = self.enter(input_ids, context)
        begun = self.begin(injected, state, generator, self.is_noisy)
        cache = context.cache  # which may have held deeper rows: all rows end at its deepest count
        total = cache.iterations_of(iterations) if isinstance(cache, Cache) else deepest(iterations)
        begins = (total - iterations)[:, None, None] if isinstance(iterations, Tensor) else None
        disturb = None if generator is None or not self.is_noisy else partial(self.disturb, generator=generator)
        yield from iterate(
            self.thinker(injected, context), begun, total, backprop_iterations, begins, recompute, disturb
        )

    def begin(
        self,
        injected: Tensor,
        state: Tensor | None = None,
        generator: torch.Generator | None = None,
        noisy: bool = False,
    ) -> Tensor:
        """The state that a call begins with, (B, T, D): the caller's, in the number type and on the device of the
        model, or else what `start` says. Raises ValueError for what is no floating-point tensor of this shape, and for
        a state beside a generator, unless noisy iterations have it draw later on."""
        if state is None:
            return self.start(injected, generator)
        if generator is not None and not noisy:
            raise ValueError("state is the initial state, and generator draws one: give one of them")
        if not isinstance(state, Tensor) or state.shape != injected.shape or not state.is_floating_point():
            given: Any = state
            found = f"{state.dtype} of {tuple(state.shape)}" if isinstance(given, Tensor) else type(given).__name__
            raise ValueError(f"state must have shape {tuple(injected.shape)}, a tensor of floats, not {found}")
        known = state.dtype in (self.dtype, injected.dtype)  # two types under autocast, where states may be of either
        return state.to(injected.device, state.dtype if known else injected.dtype)

    def thinker(self, injected: Tensor, context: Context) -> Think:
        """One iteration over these tokens as `iterate` takes it: (state, index) -> state."""
        prepared = self.prepare(injected)
        return lambda state, index: self.think(state, prepared, context, index)
