"""What every family's configuration shares: the shape of a layer, the vocabulary, and checks that name the field.

A configuration is frozen, keyword-only and complete: after construction no field is None, so `config.json` says
everything that the architecture needs. Depth (the iteration count) is an argument of forward and never a shape.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache, cached_property
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from mull.models.cost import Cost, matrix, vector
from mull.models.registry import Registry

Capacity = float | Sequence[float]  # share of the tokens that a routed pass takes: one for all passes, or one for each
Wiring = Literal["sandwich", "pre_norm"]
RotaryLayout = Literal["interleaved", "half"]
Positions = Literal["rotary", "none"]
Convolution = Literal["none", "mlp", "attention"]

MAX_CONFIGURED = 10_000  # layers, heads and iterations that a configuration may name; a call may ask for more
MAX_SIZE = 2**31 - 1  # any other integer


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Fields common to all families.

    Args:
        vocab_size: number of token ids, V.
        d_model: width of the residual stream, D.
        n_heads: query heads, H; the head width is D / H.
        n_kv_heads: key/value heads (grouped-query attention); None means n_heads.
        d_ff: inner width of the gated MLP; None means 8/3 D, rounded up to a multiple of 8.
        max_length: longest sequence in tokens, prompt and answer together.
        norm_eps: epsilon of RMSNorm.
        rope_base: base of the rotary angles.
        tie_embeddings: the head is the embedding's transpose.
        wiring: where the norms of a layer stand; models/layers.py has the equations.
        positions: rotary position embedding, or none.
        rotary_layout: which dimensions of a head rotate together: neighbours, or the two halves.
        qk_norm: RMSNorm over each query and key head.
        qk_bias: a learned bias on queries and keys, before the rotation.
        causal: a token sees itself and what stands before it; false: all tokens of its row, for tasks whose answers
            stand where the questions do. Such a model has no cache and writes no text.
        board: the tokens of a row are the cells of a square board, in reading order: rotary positions count rows and
            columns, half of a head's pairs each, and a window is a square. It needs causal false and no convolution.
        window: the latest tokens that a head of attention sees, its own included; 0 means all there are. Where order is
            not causal, as many to the right; on a board, as many in each of the four directions.
        window_heads: query heads that look through the window, the others see everything; None means all of them.
        convolution: a depthwise convolution over a token and those before it, whatever attention sees: inside the gated
            MLP, before attention, or none (models/convolution.py).
        kernel: positions that the convolution joins, its own included.
        residual_scale: what attention and MLP are multiplied by before they join the residual stream.
        value_head: a process reward, w . norm(h) + b, read out beside the logits of every position: how likely the
            answer can still be reached from what is written so far. `training.losses.ProcessReward` trains it.
        stop_tokens: token ids that end a generated text.
    """

    model_type: ClassVar[str]
    choices: ClassVar[Mapping[str, Registry[Any]]] = {}  # fields whose values are the words of a registry
    least: ClassVar[Mapping[str, int]] = {}  # fields that have a smallest value, and that value

    vocab_size: int
    d_model: int = 256
    n_heads: int = 4
    n_kv_heads: int | None = None
    d_ff: int | None = None
    max_length: int = 1024
    norm_eps: float = 1e-6
    rope_base: float = 50_000.0
    tie_embeddings: bool = True
    wiring: Wiring = "sandwich"
    positions: Positions = "rotary"
    rotary_layout: RotaryLayout = "interleaved"
    qk_norm: bool = False
    qk_bias: bool = True
    causal: bool = True
    board: bool = False
    window: int = 0
    window_heads: int | None = None
    convolution: Convolution = "none"
    kernel: int = 4
    residual_scale: float = 1.0
    value_head: bool = False
    stop_tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.stop_tokens, list):  # as JSON has it
            object.__setattr__(self, "stop_tokens", tuple(self.stop_tokens))
        issues = wrong_types(self)
        if not issues:
            if self.n_kv_heads is None:
                object.__setattr__(self, "n_kv_heads", self.n_heads)
            if self.d_ff is None:
                object.__setattr__(self, "d_ff", 8 * -(-self.d_model // 3))
            if self.window_heads is None:
                object.__setattr__(self, "window_heads", self.n_heads if self.window else 0)
            issues = self.issues()
        if issues:
            raise ValueError(f"{type(self).__name__}: " + "; ".join(issues))

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads

    @property
    def kv_heads(self) -> int:
        return self.n_kv_heads or self.n_heads

    @property
    def near_heads(self) -> int:
        """Query heads that look through the window."""
        assert self.window_heads is not None  # resolved in __post_init__
        return self.window_heads

    @property
    def reach(self) -> int:
        """Positions that a convolution joins; 1 where there is none."""
        return 1 if self.convolution == "none" else self.kernel

    @property
    def mlp_width(self) -> int:
        assert self.d_ff is not None  # resolved in __post_init__
        return self.d_ff

    @property
    def default_iterations(self) -> int | None:
        """The iteration count of a call that names none: mean_iterations, and None for a model without a loop."""
        return getattr(self, "mean_iterations", None)

    @property
    def default_capacity(self) -> float | None:
        """The capacity of a call that names none; None for a model without routed passes."""
        return None

    @property
    def routed_layers(self) -> tuple[int, ...]:
        """The layers, from 0, that route tokens through further passes; none in most families."""
        return ()

    @property
    def effective_depth(self) -> int:
        """Layers that a token passes through at the trained depth; scales the initialisation."""
        raise NotImplementedError(f"{type(self).__name__} must say its effective_depth")

    # What it costs ----------------------------------------------------------------------------------------------------

    def once(self) -> Cost:
        """Everything that a token runs through once, whatever the iteration count."""
        raise NotImplementedError(f"{type(self).__name__} must say what it costs: write once()")

    def iteration(self) -> Cost:
        """One iteration; nothing in a model without a loop."""
        return Cost()

    def reading(self) -> Cost:
        """What it costs to read one more answer out of a state: the head, and what a family has before it."""
        return Cost(weights=self.vocab_size * self.d_model) + Cost(weights=self.d_model if self.value_head else 0)

    def ends(self) -> Cost:
        """Embedding, final norm and head: looking a token up costs nothing, the head is a product."""
        table = self.vocab_size * self.d_model
        parameters = table * (1 if self.tie_embeddings else 2)
        head = Cost(parameters=self.d_model + 1, weights=self.d_model) if self.value_head else Cost()
        return Cost(parameters=parameters, weights=table) + vector(self.d_model) + head

    def layer(self) -> Cost:
        """One layer: attention, gated MLP, norms."""
        keys_values = 2 * self.kv_heads * self.head_dim
        cost = matrix(self.d_model, self.d_model + keys_values) + matrix(self.d_model, self.d_model)
        cost += matrix(self.d_model, 3 * self.mlp_width)
        cost += (4 if self.wiring == "sandwich" else 2) * vector(self.d_model)
        cost += vector((self.n_heads + self.kv_heads) * self.head_dim if self.qk_bias else 0)
        cost += vector(2 * self.head_dim if self.qk_norm else 0)
        convolved = {"none": 0, "mlp": self.mlp_width, "attention": self.d_model}[self.convolution]
        cost += vector(self.kernel * convolved)
        near = 4 * self.near_heads * self.head_dim
        return cost + Cost(attended=4 * self.d_model, kept=keys_values + convolved, near=near)

    @property
    def parameters(self) -> int:
        """Parameters of the model, each counted once however often it is used."""
        return (self.once() + self.iteration()).parameters

    @cached_property
    def added_up(self) -> tuple[Cost, Cost]:
        """`once` and `iteration`, kept: to add them up takes as long as a small layer, and each token is billed."""
        return self.once(), self.iteration()

    def flops_per_token(
        self, iterations: float | None, length: int, capacity: Capacity | None = None, one_by_one: bool = False
    ) -> float:
        """Forward FLOPs per token of a pass over `length` positions.

        Args:
            iterations: the count, or a mean over tokens; None means the default.
            length: positions that a token attends to.
            capacity: share of the tokens that takes each routed pass; of families that route.
            one_by_one: tokens come one at a time, behind a cache: heads with a window compute no score outside of it.
        """
        count = (self.default_iterations or 0) if iterations is None else iterations
        (once, iteration), seen = self.added_up, self.seen(one_by_one)
        return once.flops(length, seen) + count * iteration.flops(length, seen)

    def seen(self, one_by_one: bool) -> int | None:
        """The window that `Cost.flops` takes; None where all scores are computed."""
        return self.window if one_by_one and self.window else None

    def training_flops_per_token(
        self, iterations: int | None, length: int, backprop_iterations: int | None = None
    ) -> float:
        """FLOPs per token of forward and backward with a gradient window of k iterations (None: all)."""
        total = iterations or self.default_iterations or 0
        without = 0 if backprop_iterations is None else max(0, total - backprop_iterations)
        return 3 * self.flops_per_token(total, length) - 2 * without * self.iteration().flops(length)

    def cache_bytes_per_token(self, iterations: int | None, itemsize: int = 4) -> int:
        """Bytes of keys and values kept for one position when every iteration that runs keeps its own, of numbers of
        `itemsize` bytes (4 for float32); None means the default count."""
        count = iterations or self.default_iterations or 0
        return (self.once().kept + count * self.iteration().kept) * itemsize

    def issues(self) -> list[str]:
        """Everything wrong with the values, one sentence each. Families add their own."""
        positive = ["vocab_size", "d_model", "n_heads", "n_kv_heads", "d_ff", "max_length", "norm_eps", "rope_base"]
        positive += ["kernel", "residual_scale"]
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        found = [f"{name} must be positive, not {values[name]}" for name in positive if not 0 < values[name] < math.inf]
        found += too_large(values)
        if found:
            return found
        wrong = [(name, registry.wrong(values[name])) for name, registry in self.choices.items()]
        found += [f"{name} {complaint}" for name, complaint in wrong if complaint]
        if self.d_model % self.n_heads:
            found.append(f"d_model {self.d_model} is not divisible by n_heads {self.n_heads}")
        elif self.positions == "rotary" and self.head_dim % 2:
            found.append(f"rotary positions need an even head width; d_model / n_heads is {self.head_dim}")
        if self.n_heads % self.kv_heads:
            found.append(f"n_heads {self.n_heads} is not divisible by n_kv_heads {self.n_kv_heads}")
        elif self.near_heads % (self.n_heads // self.kv_heads):
            sharing = self.n_heads // self.kv_heads
            found.append(f"window_heads {self.window_heads} must be a multiple of the {sharing} heads that share keys")
        if self.causal and self.board:
            found.append("board true needs causal false: the cells of a board see each other")
        if self.board and self.convolution != "none":
            found.append(
                f"board true does not go with convolution {self.convolution!r}, which joins a token with those before "
                "it in reading order: use none"
            )
        if self.window < 0:
            found.append(f"window must be 0 (no window) or more, not {self.window}")
        if self.window == 0 and self.near_heads:
            found.append(f"window_heads {self.window_heads} needs a window: set window, or leave window_heads out")
        if not 0 <= self.near_heads <= self.n_heads:
            found.append(f"window_heads must lie in 0 .. n_heads {self.n_heads}, not {self.window_heads}")
        outside = [token for token in self.stop_tokens if not 0 <= token < self.vocab_size]
        if outside:
            found.append(f"stop_tokens {outside} lie outside the vocabulary of {self.vocab_size}")
        least = self.least.items()
        found += [f"{name} must be at least {low}, not {values[name]}" for name, low in least if values[name] < low]
        return found


def too_large(values: Mapping[str, Any]) -> list[str]:
    """The integers of a configuration, by field, that no model has: a sentence for each."""
    found = []
    for name, value in values.items():
        counts = name.startswith(("n_", "mean_")) and name != "n_embd"  # which, of the public layout, is a width
        limit = MAX_CONFIGURED if counts else MAX_SIZE
        if isinstance(value, int) and value > limit:
            found.append(f"{name} {value} is above {limit:,}")
    return found


def wrong_types(config: ModelConfig) -> list[str]:
    """A configuration also comes from JSON, where nothing has checked the types: compare them with the annotations."""
    kind: Any = type(config)  # mypy would look for the hash of an instance
    checked = [(name, hint, getattr(config, name)) for name, hint in annotations(kind).items()]
    return [f"{name} must be {describe(hint)}, not {value!r}" for name, hint, value in checked if not fits(value, hint)]


@cache
def annotations(kind: type[ModelConfig]) -> dict[str, Any]:
    """{field: type} of a class of configurations; to work it out takes longer than all else that makes one."""
    hints = get_type_hints(kind)
    return {f.name: hints[f.name] for f in fields(kind)}


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type; knows just the annotations that configurations use."""
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(fits(item, get_args(hint)[0]) for item in value)
    if get_args(hint):  # a union such as int | None
        return any(fits(value, option) for option in get_args(hint))
    if hint in (int, float):
        return isinstance(value, int | hint) and not isinstance(value, bool)
    return isinstance(value, hint)


def describe(hint: Any) -> str:
    """An annotation of a configuration's field in words, for messages: `int`, or `one of 'rotary', 'none'`."""
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(repr, get_args(hint)))
    return getattr(hint, "__name__", str(hint)) if not get_args(hint) else str(hint)
