"""RecurrentDepthTransformer: prelude, looped core, coda (Huginn; Geiping et al., arXiv 2502.05171, section 3).

    e   = Prelude( sqrt(D) E[x] )                        injected into every iteration
    s_0 ~ TruncatedNormal(0, 2/5), cut at 3 sigma        or zero, the mean, which is the default
    s_i = Core( Inject(s_{i-1}, e) ),   i = 1 .. R
    logits = E . norm( Coda( norm(s_R) ) )               the same final norm twice

Injections (closed choices; what they make of e is the same in every iteration, and is prepared once per forward):

    concat    A [s ; e], A a matrix D x 2D without bias                                      (Huginn)
    add       s + e                                                                         (Huginn's small models)
    diagonal  exp(-dt exp(a)) * s + dt * B norm(e), a and dt > 0 vectors, B a matrix         (Parcae, arXiv 2604.12946)

Deliberate deviations from the public reference: depth and randomness are arguments of forward (never drawn inside);
padding is honoured; the up-projection starts like every other matrix (the reference's inference file scales it down,
its training code does not). From Parcae: dt is a softplus of its parameter, so that it stays positive.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mull.models.cache import Cache
from mull.models.config import ModelConfig
from mull.models.language_model import LanguageModel, check_read_at, initialize
from mull.models.layers import Frame, Layer, RMSNorm
from mull.models.loop import Iterations, Think, check_count, check_iterations, iterate
from mull.models.output import ModelOutput, Reading


@dataclass(frozen=True, kw_only=True)
class RecurrentDepthConfig(ModelConfig):
    """Configuration of the recurrent-depth family; see `ModelConfig` for the shared fields.

    Args:
        n_prelude, n_core, n_coda: layers before, inside and after the loop.
        mean_iterations: mean depth of training; scales the initialisation, and is the default depth of forward.
        injection: how the prelude's output re-enters every iteration.
        initial_state: distribution of s_0 when a generator asks for a random one.
        exit_gate: a learned halt, sigmoid(w . norm(s) + b), read out beside the logits (Ouro, arXiv 2510.25741).
    """

    model_type: ClassVar[str] = "recurrent_depth"

    n_prelude: int = 1
    n_core: int = 1
    n_coda: int = 1
    mean_iterations: int = 8
    injection: Literal["concat", "add", "diagonal"] = "concat"
    initial_state: Literal["normal", "zero"] = "normal"
    exit_gate: bool = False

    @property
    def default_iterations(self) -> int:
        return self.mean_iterations

    @property
    def effective_depth(self) -> int:
        return self.n_prelude + self.mean_iterations * self.n_core + self.n_coda

    def issues(self) -> list[str]:
        least = {"n_prelude": 0, "n_core": 1, "n_coda": 0, "mean_iterations": 1}
        return super().issues() + [
            f"{name} must be at least {limit}, not {getattr(self, name)}"
            for name, limit in least.items()
            if getattr(self, name) < limit
        ]


class ConcatInjection(nn.Module):
    """A [s ; e] = A_s s + A_e e: the first D columns of A act on the state; A_e e is the same in every iteration."""

    def __init__(self, config: RecurrentDepthConfig) -> None:
        super().__init__()
        self.adapter = nn.Linear(2 * config.d_model, config.d_model, bias=False)

    def prepare(self, injected: Tensor) -> Tensor:
        return F.linear(injected, self.adapter.weight.chunk(2, dim=1)[1])

    def forward(self, state: Tensor, prepared: Tensor) -> Tensor:
        on_state = self.adapter.weight.chunk(2, dim=1)[0]
        return (F.linear(state, on_state) + prepared).to(state.dtype)  # autocast must not narrow the state


class AddInjection(nn.Module):
    """s + e."""

    def __init__(self, _: RecurrentDepthConfig) -> None:
        super().__init__()

    def prepare(self, injected: Tensor) -> Tensor:
        return injected

    def forward(self, state: Tensor, prepared: Tensor) -> Tensor:
        return state + prepared


class DiagonalInjection(nn.Module):
    """exp(-dt exp(a)) * s + dt * B norm(e): every channel decays, so the carried state cannot grow without bound.

    Starts at Parcae's values: a = 0, dt such that the decay is sqrt(1/5), B the identity.
    """

    def __init__(self, config: RecurrentDepthConfig) -> None:
        super().__init__()
        dt = -math.log(math.sqrt(1 / 5))
        self.log_rate = nn.Parameter(torch.zeros(config.d_model))
        self.raw_dt = nn.Parameter(torch.full((config.d_model,), math.log(math.expm1(dt))))
        self.write = nn.Parameter(torch.zeros(config.d_model, config.d_model).fill_diagonal_(1))  # B
        self.norm = RMSNorm(config.d_model, config.norm_eps)

    def prepare(self, injected: Tensor) -> Tensor:
        return F.softplus(self.raw_dt) * F.linear(self.norm(injected), self.write)

    def forward(self, state: Tensor, prepared: Tensor) -> Tensor:
        decay = torch.exp(-F.softplus(self.raw_dt) * torch.exp(self.log_rate))
        return decay * state + prepared


INJECTIONS = {"concat": ConcatInjection, "add": AddInjection, "diagonal": DiagonalInjection}


class RecurrentDepthTransformer(LanguageModel):
    """A transformer whose core block is iterated in latent space. See the head of this file."""

    config: RecurrentDepthConfig

    def __init__(self, config: RecurrentDepthConfig) -> None:
        super().__init__(config)
        self.prelude = nn.ModuleList(Layer(config) for _ in range(config.n_prelude))
        self.injection = INJECTIONS[config.injection](config)
        self.core = nn.ModuleList(Layer(config) for _ in range(config.n_core))
        self.coda = nn.ModuleList(Layer(config) for _ in range(config.n_coda))
        self.exit_gate = nn.Linear(config.d_model, 1) if config.exit_gate else None
        initialize(self)
        if self.exit_gate is not None:
            nn.init.zeros_(self.exit_gate.bias)

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
    ) -> ModelOutput:
        """Think for `iterations` and answer.

        Args:
            input_ids: (B, T) int64.
            iterations: R >= 1, or (B,) int64 with one count per row; None means the config's mean_iterations.
            backprop_iterations: gradient through the last k iterations only; None means through all.
            state: (B, T, D), the initial state, owned by the caller; a + b iterations equal a, then b from out.state.
            generator: draws a random initial state; without it the state starts at its mean, zero.
            attention_mask: (B, T), 0 at padding (left or right).
            cache: keys and values of earlier tokens; a cached call keeps no gradients.
            read_at: counts at which to read an answer out of the same unroll (one count for all rows, no cache).

        Returns:
            logits (B, T, V) and state (B, T, D) after the last iteration, iterations (B, T), and `readings` by count.

        Raises:
            ValueError: a count below 1, read_at beyond the count, tensors of the wrong shape, too many positions.
        """
        depth = check_iterations(self.config.mean_iterations if iterations is None else iterations, len(input_ids))
        if isinstance(depth, Tensor):
            depth = depth.to(input_ids.device)
        if backprop_iterations is not None:
            check_count("backprop_iterations", backprop_iterations)
        check_read_at(read_at, depth, cache, "the coda's keys in it belong to the last iteration")
        with torch.set_grad_enabled(torch.is_grad_enabled() and cache is None):
            frame = self.frame(input_ids, attention_mask, cache, depth)
            readings = {}
            for count, thought in self.unroll(input_ids, depth, frame, backprop_iterations, state, generator):
                if count in read_at:
                    readings[count] = self.read(thought, frame)
            last = readings[count] if count in readings else self.read(thought, frame)
            if cache is not None:
                frame.finish(depth if isinstance(depth, int) else None)
        used = depth[:, None] if isinstance(depth, Tensor) else torch.tensor(depth, device=input_ids.device)
        return ModelOutput(
            logits=last.logits,
            exit_logit=last.exit_logit,
            state=thought,
            iterations=used.expand(input_ids.shape).to(torch.int64),
            readings=readings,
        )

    def sweep(self, input_ids: Tensor, counts: Sequence[int | None]) -> Iterator[tuple[int | None, Reading]]:
        wanted = [check_count("iterations", count) for count in counts]  # type: ignore[arg-type]  # refuses None
        deepest = max(wanted)
        frame = self.frame(input_ids, None, None, deepest)
        for count, state in self.unroll(input_ids, deepest, frame):
            if count in wanted:
                yield count, self.read(state, frame)

    def unroll(
        self,
        input_ids: Tensor,
        iterations: Iterations,
        frame: Frame,
        backprop_iterations: int | None = None,
        state: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Iterator[tuple[int, Tensor]]:
        """Prelude, then (count, state) after every iteration; see `loop.iterate`."""
        injected = self.enter(input_ids, frame)
        if state is None:
            state = self.draw_state(injected, generator)
        elif state.shape != injected.shape:
            raise ValueError(f"state must have shape {tuple(injected.shape)}, not {tuple(state.shape)}")
        total = None if frame.cache is None else frame.cache.deepest(iterations)
        think = self.thinker(self.prepare(injected), frame)
        yield from iterate(think, state, iterations, backprop_iterations, total)

    def enter(self, input_ids: Tensor, frame: Frame) -> Tensor:
        """Embedding and prelude: (B, T) token ids -> what is injected into every iteration, (B, T, D)."""
        return self.through(self.prelude, self.embed(input_ids), frame, 0)

    def prepare(self, injected: Tensor) -> Tensor:
        """What every iteration makes of the injected input, (B, T, D)."""
        return self.injection.prepare(injected)  # type: ignore[operator]  # a method of every injection

    def thinker(self, prepared: Tensor, frame: Frame) -> Think:
        """One iteration over these tokens, as `iterate` takes it: (state, index) -> state."""

        def think(state: Tensor, iteration: int) -> Tensor:
            return self.through(self.core, state, frame, len(self.prelude), iteration, (self.injection, prepared))

        return think

    def draw_state(self, like: Tensor, generator: torch.Generator | None) -> Tensor:
        """s_0 in the shape and type of `like`: zero, or with a generator one draw of its distribution."""
        state = torch.zeros_like(like)
        if generator is None or self.config.initial_state == "zero":
            return state
        std = math.sqrt(2 / 5)
        drawn = torch.empty(like.shape, device=generator.device)
        nn.init.trunc_normal_(drawn, std=std, a=-3 * std, b=3 * std, generator=generator)
        return state.copy_(drawn)

    def read(self, state: Tensor, frame: Frame) -> Reading:
        """The answer in a state: coda and head, and the exit gate where there is one."""
        x = self.through(self.coda, self.final_norm(state), frame, len(self.prelude) + len(self.core))
        return Reading(logits=self.logits(x), exit_logit=None if self.exit_gate is None else self.halt(state))

    def halt(self, state: Tensor) -> Tensor:
        """The exit gate's logit in a state, (B, T)."""
        if self.exit_gate is None:
            raise ValueError("the model has no exit gate: train one with exit_gate: true, or use another exit rule")
        return self.exit_gate(self.final_norm(state)).squeeze(-1)
