"""Iterations that keep their state alone, and are computed again for the gradient."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mull.models import LanguageModel, RecurrentDepthConfig

Build = Callable[..., LanguageModel]
Tokens = Callable[..., Tensor]

SHAPE = {"vocab_size": 11, "d_model": 24, "n_heads": 6, "n_kv_heads": 2, "d_ff": 20, "max_length": 12}
WORDS = {
    "n_prelude": 1,
    "n_core": 3,
    "n_coda": 2,
    "window": 4,
    "window_heads": 3,
    "convolution": "mlp",
    "state_noise": 0.3,
}


@pytest.mark.parametrize("precision", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("counts", [5, [5, 1, 3]], ids=["alike", "by row"])
def test_gradients_are_equal_to_the_bit(
    build: Build, tokens: Tokens, precision: torch.dtype, window: int | None, counts: int | list[int]
) -> None:
    """Guards the arithmetic: the same operations in the same order, also under autocast (bfloat16), whose casts of the
    weights the second computation makes anew; and the noise of an iteration, which is drawn once."""
    model = build(RecurrentDepthConfig(**SHAPE, **WORDS)).train()
    model.to(torch.float32 if precision == torch.bfloat16 else precision)
    ids, found = tokens(model.config, 3, 9), []
    for recomputed in (False, True):
        model.zero_grad()
        generator = torch.Generator().manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
            depth = torch.tensor(counts) if isinstance(counts, list) else counts
            output = model(
                ids, depth, backprop_iterations=window, generator=generator, checkpoint_iterations=recomputed
            )
            loss = F.cross_entropy(output.logits.float().flatten(0, 1), ids.flatten())
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters())])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def kept(model: LanguageModel, ids: Tensor, iterations: int, recomputed: bool) -> int:
    """Bytes that the graph of a call keeps, each tensor counted once."""
    sizes: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        output = model(ids, iterations, checkpoint_iterations=recomputed)
    # what the recomputed iterations hold is not handed to these hooks: the state that each begins with
    states = iterations * output.state.nbytes if recomputed else 0
    return sum(sizes.values()) + states


def test_memory_at_many_iterations_is_less_than_half(build: Build, tokens: Tokens) -> None:
    """Guards the point of it: at 64 iterations with a window of attention. (Peaks: benchmarks/training_step.py.)"""
    model = build(RecurrentDepthConfig(**SHAPE, n_core=1, window=4)).train()
    ids = tokens(model.config, 2, 12)
    assert kept(model, ids, 64, recomputed=True) < 0.5 * kept(model, ids, 64, recomputed=False)
