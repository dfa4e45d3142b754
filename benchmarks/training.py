"""What the loop costs in training: python benchmarks/training.py [--threads 1] [--rounds 7]

1. Overhead: a RecurrentDepthTransformer's training step against a Transformer's with as many executed layers of the
   same shape, both with full backpropagation and AdamW. Goal: at most 1.05.
2. Memory: peak of a training step at 64 iterations against 8, same gradient window. Goal: within 5 %.
3. Sweep: answers at 1, 2, 4, ... R out of one unroll against the single run at R. Goal: at most 1.15.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from timing import announce, peak_bytes, ratio, take_turns
from torch.nn import functional as F

from mull import RecurrentDepthConfig, RecurrentDepthTransformer, Transformer, TransformerConfig
from mull.models import LanguageModel

SHAPES = [(1, 1, 1, 128), (2, 4, 2, 128)]  # n_prelude, n_core, n_coda, d_model


def training_step(model: LanguageModel, input_ids: torch.Tensor, **depth: int) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def run() -> None:
        logits = model(input_ids, **depth).logits
        F.cross_entropy(logits.flatten(0, 1), input_ids.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def overhead(shape: tuple[int, int, int, int], iterations: int, rounds: int) -> float:
    """Time of a recurrent step divided by that of an untied step with as many executed layers."""
    n_prelude, n_core, n_coda, d_model = shape
    common = {"vocab_size": 256, "d_model": d_model, "n_heads": 4}
    recurrent = RecurrentDepthTransformer(
        RecurrentDepthConfig(n_prelude=n_prelude, n_core=n_core, n_coda=n_coda, **common)
    )
    untied = Transformer(TransformerConfig(n_layers=n_prelude + iterations * n_core + n_coda, **common))
    input_ids = torch.randint(0, 256, (4, 128))
    contestants = {
        "recurrent": training_step(recurrent, input_ids, iterations=iterations),
        "untied": training_step(untied, input_ids),
    }
    return ratio(take_turns(contestants, rounds), "recurrent", "untied")


def memory(shape: tuple[int, int, int, int], window: int) -> float:
    """Peak bytes of a training step at 64 iterations divided by those at 8."""
    n_prelude, n_core, n_coda, d_model = shape
    config = RecurrentDepthConfig(
        vocab_size=256, d_model=d_model, n_heads=4, n_prelude=n_prelude, n_core=n_core, n_coda=n_coda
    )
    model, input_ids = RecurrentDepthTransformer(config), torch.randint(0, 256, (4, 128))
    peaks = {}
    for iterations in (8, 64):
        step = training_step(model, input_ids, iterations=iterations, backprop_iterations=window)
        step()  # the optimizer's state is there from now on
        peaks[iterations] = peak_bytes(step)
    return peaks[64] / peaks[8]


def sweep(shape: tuple[int, int, int, int], deepest: int, rounds: int) -> float:
    """Time of reading answers at 1, 2, 4, ... R out of one unroll divided by that of the single run at R."""
    n_prelude, n_core, n_coda, d_model = shape
    config = RecurrentDepthConfig(
        vocab_size=256, d_model=d_model, n_heads=4, n_prelude=n_prelude, n_core=n_core, n_coda=n_coda
    )
    model, input_ids = RecurrentDepthTransformer(config).eval(), torch.randint(0, 256, (4, 128))
    counts = [2**k for k in range(deepest.bit_length()) if 2**k <= deepest]

    @torch.no_grad()
    def run(read_at: list[int]) -> None:
        model(input_ids, iterations=deepest, read_at=read_at)

    contestants = {"sweep": lambda: run(counts), "single": lambda: run([])}
    return ratio(take_turns(contestants, rounds), "sweep", "single")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    announce()
    for shape in SHAPES:
        name = "({}, {}, {}) layers, width {}".format(*shape)
        print(f"{name}: step at 8 iterations / untied step  {overhead(shape, 8, options.rounds):.3f}")
        print(f"{name}: peak memory at 64 / at 8, window 4  {memory(shape, 4):.3f}")
        for deepest in (32, 64):
            print(f"{name}: sweep 1..{deepest} / single run at {deepest}  {sweep(shape, deepest, options.rounds):.3f}")


if __name__ == "__main__":
    main()
