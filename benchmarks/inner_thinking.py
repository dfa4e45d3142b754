"""What routed passes save: python benchmarks/inner_thinking.py [--rounds 7] [--tokens 4096] [--shapes W:L,W:L]

Four layers, two of which think four times (x4):

1. Routed passes, in a training step's forward and backward, in eval and in a prefill (into a cache): the time that they
   add to the first passes at capacity 0.5, divided by what they add at 1.0. Goal: at most 0.62. By width and length;
   `--tokens` in rows of that length, one at least.
2. The same for the whole model, first passes and head included.
3. Decoding one position at a time, batch 1, width 256: positions per second against those of a straight line between no
   routed passes and all of them, by the share that ran. Goal: within 15 %. Also the share of the added time itself.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from timing import announce, ratio, take_turns

from mull import InnerThinkingConfig, InnerThinkingTransformer

SHAPES = "256:256,256:1024,256:2048,512:256"
DECODED = 32
CAPACITIES = (0.0, 0.25, 0.5, 0.75, 1.0)


def shapes(text: str) -> list[tuple[int, int]]:
    """Widths and lengths out of 256:1024,512:256."""
    return [(int(width), int(length)) for width, length in (shape.split(":") for shape in text.split(","))]


def make(width: int, length: int, rows: int) -> tuple[InnerThinkingTransformer, torch.Tensor]:
    config = InnerThinkingConfig(vocab_size=256, d_model=width, n_heads=4, n_layers=4, max_length=2 * length)
    model, ids = InnerThinkingTransformer(config), torch.randint(0, 256, (rows, length))
    model.calibrate(ids)
    return model, ids


def training_step(model: InnerThinkingTransformer, ids: torch.Tensor, capacity: float) -> Callable[[], None]:
    def run() -> None:
        model.train()(ids, capacity=capacity).logits.logsumexp(dim=-1).mean().backward()
        model.zero_grad()

    return run


def scoring(model: InnerThinkingTransformer, ids: torch.Tensor, capacity: float) -> Callable[[], None]:
    @torch.inference_mode()
    def run() -> None:
        model.eval()(ids, capacity=capacity)

    return run


def prefill(model: InnerThinkingTransformer, ids: torch.Tensor, capacity: float) -> Callable[[], None]:
    @torch.inference_mode()
    def run() -> None:
        model.eval()(ids, capacity=capacity, cache=model.new_cache(*ids.shape))

    return run


def decoding(
    model: InnerThinkingTransformer, ids: torch.Tensor, capacity: float, taken: list[float]
) -> Callable[[], None]:
    """The last positions of a row, fed one by one; those before are read beforehand."""
    end = ids.shape[1]
    start = end - DECODED

    @torch.inference_mode()
    def run() -> None:
        cache.rollback([start])  # what is behind is written again
        for t in range(start, end):
            taken.append(float(model(ids[:1, t : t + 1], capacity=capacity, cache=cache).selected.float().mean()))

    model.eval()
    cache = model.new_cache(1, end)
    with torch.inference_mode():
        model(ids[:1, :start], capacity=capacity, cache=cache)
    return run


def added(seconds: dict[str, list[float]], some: str, none: str, all_: str) -> float:
    """Median over rounds of (some - none) / (all - none): what the routed passes cost, the first passes taken off."""
    rounds = zip(seconds[some], seconds[none], seconds[all_], strict=True)
    return statistics.median((s - n) / (a - n) for s, n, a in rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=4096, help="of a call in 1 and 2")
    parser.add_argument("--shapes", type=shapes, default=SHAPES, help=f"width:length, ..., such as {SHAPES}")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    announce()
    for width, length in options.shapes:
        model, ids = make(width, length, max(1, options.tokens // length))
        for name, kind in (("training step", training_step), ("eval", scoring), ("prefill", prefill)):
            seconds = take_turns({str(c): kind(model, ids, c) for c in (0.0, 0.5, 1.0)}, options.rounds)
            routed, whole = added(seconds, "0.5", "0.0", "1.0"), ratio(seconds, "0.5", "1.0")
            print(
                f"width {width}, {len(ids)} rows of {length}, {name}: "
                f"capacity 0.5 / 1.0 of routed passes {routed:.3f}, of the model {whole:.3f}"
            )
    model, ids = make(256, 256, rows=4)
    taken: dict[float, list[float]] = {c: [] for c in CAPACITIES}
    runs = {str(c): decoding(model, ids, c, taken[c]) for c in CAPACITIES}
    seconds = take_turns(runs, options.rounds)
    for c in CAPACITIES:
        met, share = statistics.mean(taken[c]), added(seconds, str(c), "0.0", "1.0")
        line = {"line": [(1 - met) * n + met * a for n, a in zip(seconds["0.0"], seconds["1.0"], strict=True)]}
        print(
            f"decoding at capacity {c}: {met:.2f} of the passes ran, {share:.2f} of their time; "
            f"{DECODED / statistics.median(seconds[str(c)]):.0f} positions/s, "
            f"{ratio(seconds | line, 'line', str(c)):.3f} of the straight line's"
        )


if __name__ == "__main__":
    main()
