"""What the loop costs in training: python benchmarks/training.py [--threads 1] [--rounds 7]

1. Overhead: a RecurrentDepthTransformer's training step against a Transformer's with as many executed layers of the
   same shape, both with full backpropagation and AdamW. Goal: at most 1.05.
2. Memory: peak of a training step at 64 iterations against 8, same gradient window. Goal: within 5 %.
3. Sweep: answers at 1, 2, 4, ... R out of one unroll against the single run at R. Goal: at most 1.15.
4. Optimizer: a step of MuonAdamW against forward and backward at the same shape, orthogonalising in float32, bfloat16
   and in what `auto` takes here. Goal of auto: at most 0.05 (parity), 0.08 (text), 0.4 (5.4 M parameters, 512 tokens).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from timing import announce, peak_bytes, ratio, take_turns
from torch.nn import functional as F

from mull import RecurrentDepthConfig, RecurrentDepthTransformer, Transformer, TransformerConfig
from mull.models import LanguageModel
from mull.training.muon import NumberType, number_type
from mull.training.optimizers import MuonAdamW

SHAPES = [(1, 1, 1, 128), (2, 4, 2, 128)]  # n_prelude, n_core, n_coda, d_model

OPTIMIZED = {  # fields of the config, batch, positions, gradient window: of parity_full_attention.yaml, of text.yaml
    "parity": ({"d_model": 64, "n_prelude": 1, "n_core": 1, "n_coda": 0, "vocab_size": 6}, 64, 33, 5),
    "text": ({"d_model": 128, "n_prelude": 1, "n_core": 2, "n_coda": 1, "vocab_size": 257}, 8, 256, 4),
    "5.4 M": ({"d_model": 256, "n_prelude": 2, "n_core": 4, "n_coda": 2, "vocab_size": 257, "d_ff": 512}, 2, 256, 8),
}


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


def optimizer_share(name: str, rounds: int) -> tuple[int, dict[NumberType, float]]:
    """Parameters, and time of an optimizer step divided by that of forward and backward, by number type."""
    fields, batch, positions, window = OPTIMIZED[name]
    model = RecurrentDepthTransformer(RecurrentDepthConfig(n_heads=4, **fields))
    input_ids = torch.randint(0, fields["vocab_size"], (batch, positions))

    def forward_and_backward() -> None:
        model.zero_grad()
        logits = model(input_ids, iterations=8, backprop_iterations=window).logits
        F.cross_entropy(logits.flatten(0, 1), input_ids.flatten()).backward()

    types: list[NumberType] = ["auto", "float32", "bfloat16"]
    optimizers = {each: MuonAdamW(1e-5, lr=1e-5, orthogonalize_in=each).build(model) for each in types}
    contestants = {"model": forward_and_backward} | {each: optimizers[each].step for each in types}
    seconds = take_turns(contestants, rounds)
    return sum(p.numel() for p in model.parameters()), {each: ratio(seconds, each, "model") for each in types}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    announce()
    print(f"auto orthogonalises in {number_type('auto', torch.device('cpu'))} on this CPU")
    for name in OPTIMIZED:
        parameters, shares = optimizer_share(name, options.rounds)
        said = ", ".join(f"{each} {share:.3f}" for each, share in shares.items())
        print(f"{name} ({parameters:,} parameters): optimizer step / (forward + backward)  {said}")
    for shape in SHAPES:
        name = "({}, {}, {}) layers, width {}".format(*shape)
        print(f"{name}: step at 8 iterations / untied step  {overhead(shape, 8, options.rounds):.3f}")
        print(f"{name}: peak memory at 64 / at 8, window 4  {memory(shape, 4):.3f}")
        for deepest in (32, 64):
            print(f"{name}: sweep 1..{deepest} / single run at {deepest}  {sweep(shape, deepest, options.rounds):.3f}")


if __name__ == "__main__":
    main()
