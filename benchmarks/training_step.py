"""What a training step costs beside its bare matrix products: python benchmarks/training_step.py [--rounds 7]

1. Time: forward and backward of (2,4,2) layers at 8 iterations, batch 4 of 128 tokens, eager and with compiled blocks
   (`model.compile: true`), against the matrix products of the same layer calls, forward and backward, one after another
   in the same number type: those of the layers, injection and head, then also those of attention (all of the T x T,
   which causal attention need not compute). Goal at width 256: eager 1.6, compiled 1.3 times the layers' products.
2. Equality: the largest difference of loss and gradients, compiled against eager, relative to the largest gradient.
3. Memory: peak of a step at 64 iterations with a window of attention of 4, with recomputed iterations
   (`model.checkpoint_iterations: true`) against without, and its time. Goal: at most 0.5.

Times are of this process's CPU, so that other work on the machine counts less.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from itertools import pairwise

import torch
from timing import announce, peak_bytes, ratio
from torch import Tensor
from torch.nn import functional as F

from mull.models import RecurrentDepthConfig, RecurrentDepthTransformer

BATCH, POSITIONS, ITERATIONS, HEADS = 4, 128, 8, 4


def build(width: int, **fields: int) -> RecurrentDepthTransformer:
    shape = {"n_prelude": 2, "n_core": 4, "n_coda": 2, "mean_iterations": ITERATIONS} | fields
    torch.manual_seed(0)
    config = RecurrentDepthConfig(vocab_size=512, d_model=width, n_heads=HEADS, max_length=POSITIONS, **shape)
    return RecurrentDepthTransformer(config).train()


def step(
    model: RecurrentDepthTransformer, ids: Tensor, dtype: torch.dtype, iterations: int = ITERATIONS, **options: bool
) -> Callable[[], Tensor]:
    """Forward and backward, under autocast where the type is narrow; the gradients of a step stay until the next."""

    def run() -> Tensor:
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits = model(ids, iterations, **options).logits
            loss = F.cross_entropy(logits.float().flatten(0, 1), ids.flatten())
        loss.backward()
        return loss.detach()

    return run


def products(model: RecurrentDepthTransformer, dtype: torch.dtype, attention: bool) -> Callable[[], None]:
    """The matrix products of a step alone: three of each weight (forward, both gradients), six of each attention."""
    layers = [*model.prelude, *(list(model.core) * ITERATIONS), *model.coda]
    weights = [
        weight
        for layer in layers
        for weight in (
            layer.attention.qkv.weight, layer.attention.out.weight, layer.mlp.gate_up.weight, layer.mlp.down.weight,
        )
    ]  # fmt: skip
    halves = model.injection.adapter.weight.chunk(2, dim=1)
    weights += [half.contiguous() for half in (halves[1], *[halves[0]] * ITERATIONS)]
    weights = [weight.detach().to(dtype) for weight in (*weights, model.embedding.weight)]
    rows = {width: torch.randn(BATCH * POSITIONS, width).to(dtype) for weight in weights for width in weight.shape}
    heads = torch.randn(BATCH, HEADS, POSITIONS, model.config.head_dim).to(dtype)
    scores = torch.randn(BATCH, HEADS, POSITIONS, POSITIONS).to(dtype)

    @torch.no_grad()
    def run() -> None:
        for weight in weights:
            x, gradient = rows[weight.shape[1]], rows[weight.shape[0]]
            F.linear(x, weight)
            gradient @ weight
            gradient.T @ x
        for _ in layers if attention else []:
            for _ in range(2):
                heads @ heads.mT
                scores @ heads
                scores.mT @ heads

    return run


def take_turns(contestants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each contestant in each round, after one of warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for warm in [True] + [False] * rounds:
        for name, run in contestants.items():
            start = time.process_time()
            run()
            if not warm:
                seconds[name].append(time.process_time() - start)
    return seconds


def compare_times(width: int, dtype: torch.dtype, rounds: int) -> None:
    ids = torch.randint(0, 512, (BATCH, POSITIONS), generator=torch.Generator().manual_seed(1))
    eager, compiled = build(width), build(width)
    compiled.compile_training()
    runs = {"eager": step(eager, ids, dtype), "compiled": step(compiled, ids, dtype)}
    seconds = take_turns(
        {**runs, "products": products(eager, dtype, False), "all": products(eager, dtype, True)}, rounds
    )
    said = [f"{name} {ratio(seconds, name, 'products'):.2f} ({ratio(seconds, name, 'all'):.2f})" for name in runs]
    losses = [run() for run in runs.values()]
    pairs = zip(eager.parameters(), compiled.parameters(), strict=True)
    largest = max(float(p.grad.abs().max()) for p in eager.parameters() if p.grad is not None)
    apart = max(float((a.grad - b.grad).abs().max()) for a, b in pairs if a.grad is not None and b.grad is not None)
    print(
        f"width {width}, {'bf16-mixed' if dtype == torch.bfloat16 else 'fp32'}: step / products of layers (and of "
        f"attention)  {', '.join(said)};  apart: loss {abs(float(losses[0] - losses[1])):.1e}, gradient "
        f"{apart / largest:.1e}",
        flush=True,
    )


def compare_memory(width: int, rounds: int) -> None:
    ids = torch.randint(0, 512, (BATCH, POSITIONS), generator=torch.Generator().manual_seed(1))
    peaks, runs = [], {}
    for recomputed in (False, True):
        model = build(width, window=4)
        run = step(model, ids, torch.float32, 64, checkpoint_iterations=recomputed)
        run()
        peaks.append(peak_bytes(run))
        runs["recomputed" if recomputed else "kept"] = run
    seconds = take_turns(runs, rounds)
    assert all(b < a for a, b in pairwise(peaks))
    print(
        f"width {width}, 64 iterations, window 4: peak recomputed / kept  {peaks[1] / peaks[0]:.3f} "
        f"({peaks[1] / 1e6:.0f} / {peaks[0] / 1e6:.0f} MB), time {ratio(seconds, 'recomputed', 'kept'):.2f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--widths", type=int, nargs="*", default=[256, 64, 512])
    options = parser.parse_args()
    torch.set_num_threads(1)
    announce()
    narrow = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    print(f"this CPU {'has' if narrow else 'lacks'} units for bfloat16")
    for width in options.widths:
        compare_times(width, torch.float32, options.rounds)
        if narrow:
            compare_times(width, torch.bfloat16, options.rounds)
    compare_memory(128, max(1, options.rounds // 3))


if __name__ == "__main__":
    main()
