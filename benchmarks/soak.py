"""Many random generate calls in one process: python benchmarks/soak.py [--calls 2000]

Random lengths, paddings, iteration counts, decoders, policies, stop tokens and sampling, on a small random model whose
limit many rows reach. No call may fail, and after a warm-up of a tenth of the calls memory must not grow: the peak
resident size and the live tensors are printed at both ends. Every tenth call is checked against the same request row by
row.
"""

from __future__ import annotations

import argparse
import gc
import random
import resource
from typing import Any

import torch
from timing import announce

import mull
from mull.inference.decoders import DECODERS
from mull.models import RecurrentDepthConfig, RecurrentDepthTransformer

EXITS = [
    "latent:0.3",
    "acceleration:0.4",
    "kl:0.05",
    "entropy:0.02",
    "argmax:-1",
    "confidence:0.8",
    "gate:0.2",
    "fixed:3",
]


def request(rng: random.Random, vocab_size: int) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """Prompts, their mask, and options, all at random."""
    rows, length, limit = rng.randint(1, 6), rng.randint(1, 20), rng.randint(2, 8)
    ids = torch.randint(vocab_size, (rows, length))
    mask = torch.ones_like(ids)
    for row in range(rows):
        left = rng.randint(0, length - 1)
        mask[row, :left] = 0
        mask[row, length - rng.randint(0, length - 1 - left) :] = 0
    options: dict[str, Any] = {
        "iterations": limit,
        "max_new_tokens": rng.randint(1, 20),
        "stop_tokens": rng.sample(range(vocab_size), rng.randint(0, 2)),
    }
    kind = rng.choice([*DECODERS, "shared", "deepest", "rows"])
    if kind == "adaptive":
        options |= {"exit": rng.choice(EXITS), "policy": rng.choice([None, "deepest"])}
    elif kind == "speculate":
        options["decode"] = f"speculate:{rng.randint(1, limit - 1)}:{rng.randint(1, 8)}"
    elif kind == "wavefront":
        options["decode"] = f"wavefront:{rng.randint(1, 9)}:{rng.randint(1, 9)},headway={rng.randint(1, 3)}"
    elif kind == "shared":
        options |= {"policy": "shared", "ring": rng.randint(1, 4)}
    elif kind == "deepest":
        options |= {"policy": "deepest", "warm_start": rng.random() < 0.5}
    elif kind == "rows":
        options["iterations"] = torch.tensor([rng.randint(1, 8) for _ in range(rows)])
    elif kind != "plain":
        options["decode"] = DECODERS[kind].example
    return ids, mask, options


def check_rows(
    model: RecurrentDepthTransformer, ids: torch.Tensor, mask: torch.Tensor, options: dict[str, Any]
) -> None:
    """Each row alone gives what it gave in the batch."""
    together = mull.generate(model, ids, attention_mask=mask, **options)
    for row in range(len(ids)):
        own = dict(options)
        if isinstance(own["iterations"], torch.Tensor):
            own["iterations"] = int(own["iterations"][row])
        alone = mull.generate(model, ids[row, mask[row].bool()][None], **own).new_tokens[0]
        n = int((together.iterations[row] > 0).sum())
        assert torch.equal(alone, together.new_tokens[row, :n]), options


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    announce()
    rng = random.Random(options.seed)
    config = RecurrentDepthConfig(
        vocab_size=11, d_model=24, n_heads=3, n_kv_heads=1, n_core=3, n_coda=2, max_length=28, exit_gate=True
    )
    model = RecurrentDepthTransformer(config).double().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5)  # at its start a model hardly looks back, and forgives much; at 2.5 it amplifies rounding
    memory = {}
    for call in range(1, options.calls + 1):
        ids, mask, how = request(rng, config.vocab_size)
        if call % 10:
            sampling = (
                {"temperature": 1.0, "generator": torch.Generator().manual_seed(call)} if rng.random() < 0.3 else {}
            )
            mull.generate(model, ids, attention_mask=mask, **how, **sampling)
        else:
            check_rows(model, ids, mask, how)
        if call in (options.calls // 10, options.calls):
            gc.collect()
            tensors = sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())
            memory[call] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(f"after {call:5} calls: peak resident {memory[call]:.0f} MiB, {tensors} live tensors", flush=True)
    first, last = memory.values()
    print(f"no error; growth after warm-up {last - first:.1f} MiB")


if __name__ == "__main__":
    main()
