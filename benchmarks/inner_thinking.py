"""What routed passes save: python benchmarks/inner_thinking.py [--threads 1] [--rounds 7]

Four layers of width 256, two of which think four times (x4), windows of 256 positions:

1. Routed passes, in a training step's forward and backward, in eval and in a prefill (into a cache): the time that they
   add to the first passes at capacity 0.5, divided by what they add at 1.0. Goal: at most 0.62.
2. The same for the whole model, first passes and head included.
3. Decoding one position at a time, batch 1: the time that the routed passes add, against the share of them that ran.
   Goal: in proportion, within 15 %.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from timing import announce, ratio, take_turns

from mull import InnerThinkingConfig, InnerThinkingTransformer

LENGTH, BATCH = 256, 4
CAPACITIES = (0.0, 0.25, 0.5, 0.75, 1.0)


def make() -> tuple[InnerThinkingTransformer, torch.Tensor]:
    config = InnerThinkingConfig(vocab_size=256, d_model=256, n_heads=4, n_layers=4, max_length=2 * LENGTH)
    model, ids = InnerThinkingTransformer(config), torch.randint(0, 256, (BATCH, LENGTH))
    model.calibrate(ids)
    return model, ids


def training_step(model: InnerThinkingTransformer, ids: torch.Tensor, capacity: float) -> Callable[[], None]:
    def run() -> None:
        model.train()(ids, capacity=capacity).logits.logsumexp(dim=-1).mean().backward()
        model.zero_grad()

    return run


def scoring(model: InnerThinkingTransformer, ids: torch.Tensor, capacity: float) -> Callable[[], None]:
    @torch.no_grad()
    def run() -> None:
        model.eval()(ids, capacity=capacity)

    return run


def prefill(model: InnerThinkingTransformer, ids: torch.Tensor, capacity: float) -> Callable[[], None]:
    @torch.no_grad()
    def run() -> None:
        model.eval()(ids, capacity=capacity, cache=model.new_cache(*ids.shape))

    return run


def decoding(
    model: InnerThinkingTransformer, ids: torch.Tensor, capacity: float, positions: int, taken: list[float]
) -> Callable[[], None]:
    """The positions after a prompt of LENGTH - positions, fed one by one; the prompt is read beforehand."""

    @torch.no_grad()
    def run() -> None:
        cache.rollback([LENGTH - positions])  # what is behind is written again
        for t in range(LENGTH - positions, LENGTH):
            taken.append(float(model(ids[:1, t : t + 1], capacity=capacity, cache=cache).selected.float().mean()))

    model.eval()
    cache = model.new_cache(1, LENGTH)
    with torch.no_grad():
        model(ids[:1, : LENGTH - positions], capacity=capacity, cache=cache)
    return run


def added(seconds: dict[str, list[float]], some: str, none: str, all_: str) -> float:
    """Median over rounds of (some - none) / (all - none): what the routed passes cost, the first passes taken off."""
    rounds = zip(seconds[some], seconds[none], seconds[all_], strict=True)
    return statistics.median((s - n) / (a - n) for s, n, a in rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    announce()
    model, ids = make()
    for name, kind in (("training step", training_step), ("eval", scoring), ("prefill", prefill)):
        seconds = take_turns({str(c): kind(model, ids, c) for c in (0.0, 0.5, 1.0)}, options.rounds)
        print(f"{name}: routed passes at capacity 0.5 / 1.0  {added(seconds, '0.5', '0.0', '1.0'):.3f}")
        print(f"{name}: whole model at capacity 0.5 / 1.0    {ratio(seconds, '0.5', '1.0'):.3f}")
    taken: dict[float, list[float]] = {c: [] for c in CAPACITIES}
    runs = {str(c): decoding(model, ids, c, 32, taken[c]) for c in CAPACITIES}
    seconds = take_turns(runs, options.rounds)
    for c in CAPACITIES:
        met = statistics.mean(taken[c])
        print(
            f"decoding at capacity {c}, met {met:.2f}: {1e3 * statistics.median(seconds[str(c)]) / 32:.2f} ms per "
            f"position; routed passes / those at 1.0  {added(seconds, str(c), '0.0', '1.0'):.3f}"
        )


if __name__ == "__main__":
    main()
