"""What a trace costs: python benchmarks/tracing.py [--positions 256] [--iterations 32] [--rounds 7]

Time and peak memory of traces of the shipped models, beside plain calls of the same depth in the same run, one thread:

    last     a trace that reads the last answer alone, / forward. Goal: at most 1.5 times
    all      a trace that reads an answer after every iteration, / forward that does (read_at), and / plain forward
    lenses   the same through both lenses, with all states kept, / forward that reads after every iteration
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from timing import announce, peak_bytes, ratio, take_turns

import mull

SHIPPED = Path(__file__).parents[1] / "checkpoints"


@torch.no_grad()
def compare(name: str, positions: int, iterations: int, rounds: int) -> None:
    """Print the ratios of one shipped model on random tokens."""
    model = mull.load(SHIPPED / name)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, (1, positions), generator=generator)  # ids that every vocabulary has
    every = range(1, iterations + 1)
    runs = {
        "forward": lambda: model(ids, iterations),
        "forward, all": lambda: model(ids, iterations, read_at=every),
        "last": lambda: mull.trace(model, ids, iterations, read_at=()),
        "all": lambda: mull.trace(model, ids, iterations),
        "lenses": lambda: mull.trace(model, ids, iterations, lenses=("coda", "logit"), keep_states=True),
    }
    seconds = take_turns(runs, rounds)
    peaks = {run: peak_bytes(call) for run, call in runs.items()}
    print(f"{name}, {positions} positions, {iterations} iterations, V = {model.config.vocab_size}")
    for one, other in (
        ("last", "forward"), ("all", "forward, all"), ("all", "forward"), ("lenses", "forward, all"),
    ):  # fmt: skip
        time, memory = ratio(seconds, one, other), peaks[one] / peaks[other]
        print(f"  trace {one:<8} / {other:<14} time {time:.2f}   peak memory {memory:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", type=int, default=256)
    parser.add_argument("--iterations", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    announce()
    for shipped in ("parity", "text"):
        compare(shipped, options.positions, options.iterations, options.rounds)
