"""Training with compiled blocks against training without: what is traced, and how often.

No code is generated here, which takes half a minute a block; benchmarks/training_step.py compares that with eager
training.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.nn import functional as F

from mull.models import InnerThinkingConfig, InnerThinkingTransformer, LanguageModel, RecurrentDepthConfig

Build = Callable[..., LanguageModel]
Tokens = Callable[..., Tensor]

SHAPE = {"vocab_size": 11, "d_model": 8, "n_heads": 2, "d_ff": 8, "max_length": 12}
NONE = {"n_prelude": 0, "n_core": 1, "n_coda": 0}  # the core alone


def test_compiled_training_equals_eager_training_with_one_compilation_for_all_depths_and_windows(
    build: Build, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards loss and gradients at several counts, windows, counts by row and recomputed iterations; the core is
    compiled once with gradient and once without, and eval mode does not meet it."""
    torch.compiler.reset()
    counters.clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    fast, slow = (build(RecurrentDepthConfig(**SHAPE, **NONE)).train() for _ in range(2))
    fast.compile_training()
    ids = tokens(fast.config, 3, 6)
    cases = [
        ({"iterations": 2}, 1),
        ({"iterations": 5}, 1),
        ({"iterations": torch.tensor([4, 1, 3])}, 1),
        ({"iterations": 4, "checkpoint_iterations": True}, 1),
        ({"iterations": 5, "backprop_iterations": 2}, 2),  # the first three without gradient
        ({"iterations": 7, "backprop_iterations": 4}, 2),
    ]
    for depth, compilations in cases:
        found = []
        for model in (fast, slow):
            model.zero_grad()
            loss = F.cross_entropy(model(ids, **depth).logits.flatten(0, 1), ids.flatten())
            loss.backward()
            found.append([loss.detach(), *(p.grad for p in model.parameters())])
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
        assert counters["stats"]["unique_graphs"] == compilations, depth
    assert torch.equal(fast.eval()(ids, 3).logits, slow.eval()(ids, 3).logits)
    assert counters["stats"]["unique_graphs"] == 2 and not counters["graph_break"]


@pytest.mark.parametrize("options", [{}, {"window": 3, "window_heads": 1}])
def test_compiled_blocks_serve_batches_of_other_lengths(
    build: Build, tokens: Tokens, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """Guards gradients where the length is a symbol of the compiled code and no longer a number, as in every task of
    several difficulties, down to rows of one token; the third length compiles nothing more."""
    torch.compiler.reset()
    counters.clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    fast, slow = (build(RecurrentDepthConfig(**SHAPE, **NONE, **options)).train() for _ in range(2))
    fast.compile_training()
    compilations = []
    for length in (6, 9, 4, 12, 1):
        ids = tokens(fast.config, 2, length)
        for model in (fast, slow):
            model.zero_grad()
            model(ids, 2).logits.square().sum().backward()
        for one, other in zip(fast.parameters(), slow.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-10, atol=1e-10)
        compilations.append(counters["stats"]["unique_graphs"])
    assert compilations == [1, 2, 2, 2, 3]


def test_inner_thinking_refuses() -> None:
    with pytest.raises(ValueError, match="cannot be compiled"):
        InnerThinkingTransformer(InnerThinkingConfig(**SHAPE)).compile_training()
