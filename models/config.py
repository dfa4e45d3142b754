"""What every family's configuration shares: the shape of a layer, the vocabulary, and checks that name the field.

A configuration is frozen, keyword-only and complete: after construction no field is None, so `config.json` says
everything that the architecture needs. Depth (the iteration count) is an argument of forward and never a shape.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

Wiring = Literal["sandwich", "pre_norm"]
RotaryLayout = Literal["interleaved", "half"]
Positions = Literal["rotary", "none"]


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
        wiring: where the norms of a layer stand (see `layers.Layer`).
        positions: rotary position embedding, or none.
        rotary_layout: which dimensions of a head rotate together: neighbours, or the two halves.
        qk_norm: RMSNorm over each query and key head.
        qk_bias: a learned bias on queries and keys, before the rotation.
        stop_tokens: token ids that end a generated text.
    """

    model_type: ClassVar[str]

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
            issues = self.issues()
        if issues:
            raise ValueError(f"{type(self).__name__}: " + "; ".join(issues))

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads

    @property
    def kv_heads(self) -> int:
        assert self.n_kv_heads is not None  # resolved in __post_init__
        return self.n_kv_heads

    @property
    def mlp_width(self) -> int:
        assert self.d_ff is not None  # resolved in __post_init__
        return self.d_ff

    @property
    def default_iterations(self) -> int | None:
        """The iteration count of a call that names none; None for a model without a loop."""
        return None

    @property
    def default_capacity(self) -> float | None:
        """The capacity of a call that names none; None for a model without routed passes."""
        return None

    @property
    def effective_depth(self) -> int:
        """Layers that a token passes through at the trained depth; scales the initialisation."""
        raise NotImplementedError

    def issues(self) -> list[str]:
        """Everything wrong with the values, one sentence each. Families add their own."""
        positive = ("vocab_size", "d_model", "n_heads", "n_kv_heads", "d_ff", "max_length", "norm_eps", "rope_base")
        values = [(name, getattr(self, name)) for name in positive]
        found = [f"{name} must be positive, not {value}" for name, value in values if not 0 < value < math.inf]
        if found:
            return found
        if self.d_model % self.n_heads:
            found.append(f"d_model {self.d_model} is not divisible by n_heads {self.n_heads}")
        elif self.positions == "rotary" and self.head_dim % 2:
            found.append(f"rotary positions need an even head width; d_model / n_heads is {self.head_dim}")
        if self.n_heads % self.kv_heads:
            found.append(f"n_heads {self.n_heads} is not divisible by n_kv_heads {self.n_kv_heads}")
        outside = [token for token in self.stop_tokens if not 0 <= token < self.vocab_size]
        if outside:
            found.append(f"stop_tokens {outside} lie outside the vocabulary of {self.vocab_size}")
        return found


def wrong_types(config: ModelConfig) -> list[str]:
    """A configuration also comes from JSON, where nothing has checked the types: compare them with the annotations."""
    hints = get_type_hints(type(config))
    checked = [(f.name, hints[f.name], getattr(config, f.name)) for f in fields(config)]
    return [f"{name} must be {describe(hint)}, not {value!r}" for name, hint, value in checked if not fits(value, hint)]


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type; knows just the annotations that configurations use."""
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(fits(item, get_args(hint)[0]) for item in value)
    if get_args(hint):  # a union such as int | None
        return any(fits(value, option) for option in get_args(hint))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def describe(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(repr, get_args(hint)))
    return getattr(hint, "__name__", str(hint)) if not get_args(hint) else str(hint)
