"""What a model costs: parameters, FLOPs and cache bytes as functions of the iteration count, from the config alone.

One multiplication and one addition are two FLOPs; matrix products and attention are counted (norms, activations and
the rotation are a few percent more and no counter agrees on them). Attention counts all T x T scores, as torch's own
counter does, although half of them are masked.

    forward(R)      = once + R * core                                                (per token)
    training(R, k)  = 3 * once + (R + 2 k) * core        k iterations with gradient; a backward costs two forwards

An inner-thinking layer runs whole once, then R - 1 times for a share c of the tokens: queries, attention and MLP of
that share, keys and values of the tokens that the pass before changed. The router's one product is not counted.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mull.models.config import ModelConfig
from mull.models.inner_thinking import InnerThinkingConfig
from mull.models.recurrent_depth import RecurrentDepthConfig
from mull.models.routing import Capacity, check_capacity
from mull.models.transformer import TransformerConfig


def layer_weights(config: ModelConfig) -> int:
    """Entries of the matrices of one layer."""
    qkv = config.d_model * (config.n_heads + 2 * config.kv_heads) * config.head_dim
    return qkv + config.d_model**2 + 3 * config.d_model * config.mlp_width


def layer_parameters(config: ModelConfig) -> int:
    """All parameters of one layer."""
    norms = (4 if config.wiring == "sandwich" else 2) * config.d_model
    heads = (config.n_heads + config.kv_heads) * config.head_dim if config.qk_bias else 0
    return layer_weights(config) + norms + heads + (2 * config.head_dim if config.qk_norm else 0)


def injection_weights(config: RecurrentDepthConfig) -> tuple[int, int]:
    """Matrix entries of the injection that act once, on the injected input, and in every iteration, on the state."""
    square = config.d_model**2
    return {"concat": (square, square), "add": (0, 0), "diagonal": (square, 0)}[config.injection]


def parameters(config: ModelConfig) -> int:
    """Parameters of the model, each counted once however often it is used."""
    total = config.vocab_size * config.d_model * (1 if config.tie_embeddings else 2) + config.d_model
    if isinstance(config, TransformerConfig):
        return total + config.n_layers * layer_parameters(config)
    if isinstance(config, RecurrentDepthConfig):
        layers = config.n_prelude + config.n_core + config.n_coda
        vectors = 3 * config.d_model if config.injection == "diagonal" else 0
        gate = config.d_model + 1 if config.exit_gate else 0
        return total + layers * layer_parameters(config) + sum(injection_weights(config)) + vectors + gate
    if isinstance(config, InnerThinkingConfig):
        vectors = (config.mean_iterations if config.step_encoding else 0) * config.d_model
        routers = (max(1, config.mean_iterations - 1) if config.routing else 0) * config.d_model
        return total + config.n_layers * layer_parameters(config) + len(config.thinking) * (vectors + routers)
    raise TypeError(f"no cost is known for {type(config).__name__}")


def layer_flops(config: ModelConfig, length: int) -> int:
    """FLOPs of one layer for one token that attends to `length` positions."""
    return 2 * layer_weights(config) + 4 * length * config.d_model


def once_flops(config: ModelConfig, length: int) -> int:
    """FLOPs per token of everything outside the loop; all there is, in a Transformer."""
    head = 2 * config.vocab_size * config.d_model
    if isinstance(config, TransformerConfig):
        return head + config.n_layers * layer_flops(config, length)
    if isinstance(config, InnerThinkingConfig):  # the first pass of every layer; the others are `routed_flops`
        return head + config.n_layers * layer_flops(config, length)
    if isinstance(config, RecurrentDepthConfig):
        gate = 2 * config.d_model if config.exit_gate else 0
        layers = (config.n_prelude + config.n_coda) * layer_flops(config, length)
        return head + gate + 2 * injection_weights(config)[0] + layers
    raise TypeError(f"no cost is known for {type(config).__name__}")


def iteration_flops(config: ModelConfig, length: int) -> int:
    """FLOPs per token of one iteration: injection and core."""
    if isinstance(config, RecurrentDepthConfig):
        return 2 * injection_weights(config)[1] + config.n_core * layer_flops(config, length)
    return 0


def routed_flops(config: InnerThinkingConfig, length: int, capacity: Sequence[float]) -> float:
    """FLOPs per token of the routed passes of one thinking layer, with the share of the tokens that takes each."""
    keys_values = 2 * config.d_model * 2 * config.kv_heads * config.head_dim
    total, changed = 0.0, 1.0
    for share in capacity:
        if share == 0 and config.holds:
            continue
        if share > 0:
            total += share * (layer_flops(config, length) - keys_values) + changed * keys_values
            changed = 0.0
        changed = max(changed, share) if config.holds else 1.0
    return total


def executed_flops_per_token(config: InnerThinkingConfig, shares: Sequence[Sequence[float]], length: int) -> float:
    """Forward FLOPs per token where these shares of the tokens took the routed passes of each thinking layer."""
    return once_flops(config, length) + sum(routed_flops(config, length, layer) for layer in shares)


def flops_per_token(
    config: ModelConfig, iterations: int | None, length: int, capacity: Capacity | None = None
) -> float:
    """Forward FLOPs per token of a pass over `length` positions; None means the config's default.

    Args:
        capacity: share of the tokens that takes each routed pass of an inner-thinking model.
    """
    count = iterations or config.default_iterations or 0
    if isinstance(config, InnerThinkingConfig):
        share = (config.capacity if capacity is None else capacity) if config.routing else 1.0
        routed = routed_flops(config, length, check_capacity(share, count - 1))
        return once_flops(config, length) + len(config.thinking) * routed
    return once_flops(config, length) + count * iteration_flops(config, length)


def training_flops_per_token(
    config: ModelConfig, iterations: int | None, length: int, backprop_iterations: int | None = None
) -> float:
    """FLOPs per token of forward and backward with a gradient window of k iterations (None: all)."""
    if isinstance(config, InnerThinkingConfig):  # which has no window
        return 3 * flops_per_token(config, iterations, length)
    total = iterations or config.default_iterations or 0
    window = total if backprop_iterations is None else min(backprop_iterations, total)
    return 3 * once_flops(config, length) + (total + 2 * window) * iteration_flops(config, length)


def cache_bytes_per_token(config: ModelConfig, iterations: int | None, dtype: torch.dtype = torch.float32) -> int:
    """Bytes of keys and values kept for one position when every iteration that runs keeps its own."""
    if isinstance(config, TransformerConfig):
        layers = config.n_layers
    elif isinstance(config, InnerThinkingConfig):
        layers = config.n_layers + ((iterations or config.mean_iterations) - 1) * len(config.thinking)
    elif isinstance(config, RecurrentDepthConfig):
        layers = config.n_prelude + (iterations or config.mean_iterations) * config.n_core + config.n_coda
    else:
        raise TypeError(f"no cost is known for {type(config).__name__}")
    return layers * 2 * config.kv_heads * config.head_dim * dtype.itemsize
