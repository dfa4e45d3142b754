"""RecurrentDepthTransformer: prelude, looped core, coda (Huginn; Geiping et al., arXiv 2502.05171, section 3).

    e   = Prelude( sqrt(D) E[x] )                        injected into every iteration
    s_0 = 0, or, where forward is given a generator, a draw of TruncatedNormal(mean 0, variance 2/5), cut at 3 sigma
    s_i = Core( Inject(s_{i-1}, e) ),   i = 1 .. R       injection.py has the choices
          with answer_feedback:          Core( Inject(s_{i-1} + sqrt(D) softmax(E . norm(norm(s_{i-1}))) E, e) )
          with damping a:                (1 - a) s_{i-1} + a Core( ... )
          in training, with a generator: s_i <- s_i + sigma RMS(s_i) eps,   eps ~ Normal(0, 1)     where sigma is not 0
    logits = E . norm( Coda( norm(s_R) ) )               the same final norm twice

Deliberate deviations from the public reference: the count and the random generator are arguments of forward; padding is
honoured; the MLP's up-projection starts like every other matrix, as in the reference's training code. The answer that
is fed back is our form of TRM's (arXiv 2510.04871), whose answer is a second latent, made anew after some iterations:
here it is what the state would say by itself, without a coda, as a mixture of embeddings, in every iteration. So it is
a function of the state alone, and nothing else is carried, cached or handed on.

The loop, the cache and reading on the way are those of every `IteratedModel` (iterated.py).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from mull.models.config import ModelConfig
from mull.models.cost import Cost
from mull.models.injection import INJECTIONS
from mull.models.iterated import IteratedModel
from mull.models.language_model import family, initialize
from mull.models.layers import Layer
from mull.models.output import Reading
from mull.models.positions import Context
from mull.models.precision import wide
from mull.models.registry import Registry
from mull.models.roles import Role


@dataclass(frozen=True, kw_only=True)
class RecurrentDepthConfig(ModelConfig):
    """Configuration of the recurrent-depth family; see `ModelConfig` for the shared fields.

    Args:
        n_prelude: layers before the loop.
        n_core: layers inside the loop.
        n_coda: layers after the loop.
        mean_iterations: forward's default count; also scales the initialisation. What training draws is the sampler's.
        injection: how the prelude's output re-enters every iteration: concat, add or diagonal (injection.py).
        initial_state: what a generator draws as s_0: normal, or zero (nothing is drawn then).
        state_noise: sigma, noise that training adds to the state after each iteration, in units of the state's own RMS
            by position; it is drawn by the generator of s_0, so there is none without one, and none in eval.
        damping: a of the damped update s <- (1 - a) s + a Core(...); 1 replaces the state.
        answer_feedback: what the state would answer, as a mixture of embeddings, is added to it before each iteration;
            see the head of this file. Two more products with the vocabulary in every iteration, and in training its
            chances are kept for the gradient.
        exit_gate: a learned halt, sigmoid(w . norm(s) + b), read out beside the logits (Ouro, arXiv 2510.25741).
    """

    model_type: ClassVar[str] = "recurrent_depth"
    choices: ClassVar[Mapping[str, Registry[Any]]] = {"injection": INJECTIONS}
    least: ClassVar[Mapping[str, int]] = {"n_prelude": 0, "n_core": 1, "n_coda": 0, "mean_iterations": 1}

    n_prelude: int = 1
    n_core: int = 1
    n_coda: int = 1
    mean_iterations: int = 8
    injection: str = "concat"
    initial_state: Literal["normal", "zero"] = "normal"
    state_noise: float = 0.0
    damping: float = 1.0
    answer_feedback: bool = False
    exit_gate: bool = False

    def issues(self) -> list[str]:
        found = super().issues()
        if not 0 < self.damping <= 1:
            found.append(f"damping must lie above 0 and at most at 1, not {self.damping}")
        if not 0 <= self.state_noise < math.inf:
            found.append(f"state_noise must be a number of at least 0, not {self.state_noise}; 0 adds none")
        return found

    @property
    def effective_depth(self) -> int:
        return self.n_prelude + self.mean_iterations * self.n_core + self.n_coda

    def once(self) -> Cost:
        gate = Cost(parameters=self.d_model + 1, weights=self.d_model) if self.exit_gate else Cost()
        layers = (self.n_prelude + self.n_coda) * self.layer()
        return self.ends() + layers + INJECTIONS[self.injection].cost(self).once + gate

    def reading(self) -> Cost:
        return super().reading() + self.n_coda * self.layer()

    def iteration(self) -> Cost:
        feedback = Cost(weights=2 * self.vocab_size * self.d_model) if self.answer_feedback else Cost()
        return self.n_core * self.layer() + INJECTIONS[self.injection].cost(self).iteration + feedback


@family
class RecurrentDepthTransformer(IteratedModel):
    """A transformer whose core block is iterated in latent space. See the head of this file."""

    config_class: ClassVar[type[ModelConfig]] = RecurrentDepthConfig
    config: RecurrentDepthConfig
    roles: ClassVar[dict[str, Role]] = {"exit_gate.weight": "table"}  # how it starts, and whose optimizer it is for

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

    def enter(self, input_ids: Tensor, context: Context) -> Tensor:
        return self.through(self.prelude, self.embed(input_ids), context, first=0)

    def start(self, injected: Tensor, generator: torch.Generator | None = None) -> Tensor:
        state = torch.zeros_like(injected)
        if generator is None or not self.starts_at_random:
            return state
        std = math.sqrt(2 / 5)
        drawn = torch.empty(injected.shape, dtype=torch.float32, device=generator.device)
        nn.init.trunc_normal_(drawn, std=std, a=-3 * std, b=3 * std, generator=generator)
        return state.copy_(drawn)

    def prepare(self, injected: Tensor) -> Any:
        return self.injection.prepare(injected)

    def think(self, state: Tensor, prepared: Any, context: Context, iteration: int) -> Tensor:
        first = len(self.prelude)
        told = state + self.answer(state) if self.config.answer_feedback else state
        new = self.through(self.core, told, context, first, iteration, join=(self.injection, prepared))
        return new if self.config.damping == 1 else torch.lerp(state, new, self.config.damping)

    def answer(self, state: Tensor) -> Tensor:
        """What a state says, (B, T, D): the mean embedding of the tokens that it would answer, coda left out."""
        said = self.logits(self.final_norm(state))
        chances = wide(said).softmax(dim=-1).to(state.dtype)
        return (math.sqrt(self.config.d_model) * (chances @ self.table())).to(state.dtype)

    def disturb(self, state: Tensor, generator: torch.Generator) -> Tensor:
        drawn = torch.randn(state.shape, generator=generator, dtype=torch.float32, device=generator.device)
        size = wide(state.detach()).square().mean(dim=-1, keepdim=True).sqrt()  # no gradient: noise is a constant
        return state + (self.config.state_noise * size * drawn.to(state.device)).to(state.dtype)

    def read(self, state: Tensor, context: Context) -> Reading:
        first = len(self.prelude) + len(self.core)
        x = self.through(self.coda, self.final_norm(state), context, first)
        gate = self.halt(state) if self.can_halt else None
        return Reading(logits=self.logits(x), exit_logit=gate, value=self.value(x))

    @property
    def starts_at_random(self) -> bool:
        return self.config.initial_state != "zero"

    @property
    def is_noisy(self) -> bool:
        return self.training and self.config.state_noise > 0

    @property
    def can_halt(self) -> bool:
        return self.exit_gate is not None

    def halt(self, state: Tensor) -> Tensor:
        if self.exit_gate is None:
            return super().halt(state)
        return self.exit_gate(self.final_norm(state)).squeeze(-1)

    def gate_parameters(self) -> list[nn.Parameter]:
        return [] if self.exit_gate is None else list(self.exit_gate.parameters())
