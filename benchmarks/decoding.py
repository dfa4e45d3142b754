"""What decoding costs; what exits, drafts and wavefronts save: python benchmarks/decoding.py [--rounds 5] [--only NAME]

1. decode: time per token of a (2,4,2) model of width 256 at 8 iterations, batch 1, against the bare matrix products of
   the same 36 layer calls. Goals: at most 3.3 times, with compiled blocks at most 2.0 times. Also bytes of cache per
   token, and FLOPs per second beside what a large matrix product reaches here.
2. context: time per token at 2,048 positions against 128, by policy, number type and heads. Goal: at most 1.3 times.
   Also what reading those keys and values alone takes, as a share of a token at 128.
3. exits: on the shipped text model at batch 32, wall-clock saved by an exit rule as a share of what its iteration
   counts promise. Goal: at least 0.9.
4. speculation: on the shipped text model at 32 iterations, tokens per second against plain decoding, same text. Goal:
   at least 1.5 times.
5. wavefront: the same for a window of positions thought about at once, beside an exit rule of the same threshold. Both
   are lossy: also the share of tokens that plain greedy decoding writes at the same place, over six prompts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch
from timing import announce, ratio, take_turns
from torch import Tensor
from torch.nn import functional as F

import mull
from mull.inference.early_exit import think_until
from mull.inference.exits import parse
from mull.models import RecurrentDepthConfig, RecurrentDepthTransformer
from mull.models.cache import Policy

SHIPPED = Path(__file__).parents[1] / "checkpoints"
CONFIG = RecurrentDepthConfig(
    vocab_size=512,
    d_model=256,
    n_heads=4,
    d_ff=704,
    n_prelude=2,
    n_core=4,
    n_coda=2,
    mean_iterations=8,
    max_length=4096,
)
PROMPT, NEW = 64, 128


def decoder(
    model: RecurrentDepthTransformer,
    prompt: int,
    new: int,
    policy: Policy = "full",
    dtype: torch.dtype | None = None,
) -> Callable[[], float]:
    """A run that returns seconds per token of greedy decoding, the prompt left out."""

    @torch.inference_mode()
    def run() -> float:
        ids = torch.randint(0, model.config.vocab_size, (1, prompt))
        cache = model.new_cache(1, prompt + new, policy, dtype=dtype)
        token = model(ids, 8, cache=cache).logits[:, -1:].argmax(-1)
        start = time.perf_counter()
        for _ in range(new):
            token = model(token, 8, cache=cache).logits.argmax(-1)
        return (time.perf_counter() - start) / new

    return run


def bare_products(model: RecurrentDepthTransformer, new: int) -> Callable[[], float]:
    """A run that returns seconds per token of the layers' matrix products alone, in the order they are called."""
    layers = [*model.prelude, *(list(model.core) * 8), *model.coda]
    rows = {width: torch.randn(1, 1, width) for width in (CONFIG.d_model, CONFIG.mlp_width)}
    weights = [
        weight
        for layer in layers
        for weight in (
            layer.attention.qkv.weight, layer.attention.out.weight, layer.mlp.gate_up.weight, layer.mlp.down.weight,
        )
    ]  # fmt: skip

    @torch.inference_mode()
    def run() -> float:
        start = time.perf_counter()
        for _ in range(new):
            for weight in weights:
                F.linear(rows[weight.shape[1]], weight)
        return (time.perf_counter() - start) / new

    return run


def peak_flops() -> float:
    """FLOPs per second of a large matrix product, the best of five."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * 1024**3 / best


def decode(rounds: int) -> None:
    model, compiled = RecurrentDepthTransformer(CONFIG).eval(), RecurrentDepthTransformer(CONFIG).eval()
    compiled.compile_decoding()
    runs = {
        "decode": decoder(model, PROMPT, NEW),
        "compiled": decoder(compiled, PROMPT, NEW),
        "products": bare_products(model, NEW),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for warm in [True] + [False] * rounds:
        for name, run in runs.items():
            taken = run()
            if not warm:
                seconds[name].append(taken)
    token = min(seconds["decode"])
    flops = CONFIG.flops_per_token(8, PROMPT + NEW // 2)
    print(f"decode: {1e3 * token:.2f} ms a token, products alone {1e3 * min(seconds['products']):.2f} ms")
    print(f"decode / products                                        {ratio(seconds, 'decode', 'products'):.2f}")
    print(f"compiled decode / products                               {ratio(seconds, 'compiled', 'products'):.2f}")
    print(f"cache: {CONFIG.cache_bytes_per_token(8):,} bytes per token")
    print(f"{flops / token / 1e9:.1f} GFLOP/s of {peak_flops() / 1e9:.1f} GFLOP/s that a large product reaches")


def reading(dtype: torch.dtype, ring: bool) -> Callable[[], float]:
    """A run that returns the seconds of summing up the keys and values of 2,048 positions in 36 layer calls."""
    slots = 8 if ring else 36
    held = torch.zeros(slots, 2, 2048, CONFIG.d_model, dtype=dtype)
    order = [0, 1, *[2, 3, 4, 5] * 8, 6, 7] if ring else range(36)

    def run() -> float:
        start = time.perf_counter()
        for slot in order:
            held[slot].sum()
        return time.perf_counter() - start

    return run


def context(rounds: int) -> None:
    for kv_heads, policy in product((4, 2, 1), ("full", "shared")):
        model = RecurrentDepthTransformer(replace(CONFIG, n_kv_heads=kv_heads)).eval()
        for dtype in (torch.float32, torch.bfloat16):
            runs = {str(length): decoder(model, length, 24, policy, dtype) for length in (128, 2048)}  # type: ignore[arg-type]
            if kv_heads == 4:
                runs["reading"] = reading(dtype, policy == "shared")
            seconds = {name: [run() for _ in range(rounds)] for name, run in runs.items()}
            print(
                f"context, {policy}, {kv_heads} key/value heads, {dtype}: time per token at 2,048 / at 128  "
                f"{ratio(seconds, '2048', '128'):.2f}"
            )
            if kv_heads == 4:
                print(f"    reading those keys and values / a token at 128  {ratio(seconds, 'reading', '128'):.2f}")


def windows(rows: int, length: int) -> Tensor:
    """Rows of a repeated, shifted line in the manner of the shipped text model's training text."""
    line = b"Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. "
    text = line * (2 + (rows + length) // len(line))
    return torch.tensor([list(text[3 * row : 3 * row + length]) for row in range(rows)])


def exits(rounds: int) -> None:
    model, ids, limit = mull.load(SHIPPED / "text"), windows(32, 64), 32
    think = torch.inference_mode()(think_until)  # as evaluation and generation call it
    for text in ("latent:0.1", "latent:0.03"):
        rule, never = parse(text), parse("fixed:99")
        used = think_until(model, ids, limit, rule).iterations.float().mean().item()
        seconds = take_turns(
            {
                "rule": lambda rule=rule: think(model, ids, limit, rule),  # type: ignore[misc]
                "never": lambda never=never: think(model, ids, limit, never),  # type: ignore[misc]
                "plain": lambda: torch.inference_mode()(model)(ids, limit),
            },
            rounds,
        )
        length = ids.shape[1]
        promised = 1 - model.config.once().flops(length) / model.config.flops_per_token(limit, length)
        promised *= 1 - used / limit
        saved = 1 - ratio(seconds, "rule", "plain")
        print(f"exit {text}: {used:.1f} of {limit} iterations; promised saving {promised:.3f}, saved {saved:.3f}")
        print(f"exit {text}: saved / promised                              {saved / promised:.2f}")
        print(f"exit {text}: thinking with a rule that never leaves / plain  {ratio(seconds, 'never', 'plain'):.2f}")


def speculation(rounds: int) -> None:
    model, ids = mull.load(SHIPPED / "text"), windows(1, 64)
    options = {"iterations": 32, "max_new_tokens": 128, "stop_tokens": ()}
    plain = mull.generate(model, ids, **options)
    for text in ("2:4", "4:8", "4:16"):
        same = torch.equal(plain.tokens, mull.generate(model, ids, **options, decode=f"speculate:{text}").tokens)
        seconds = take_turns(
            {
                "plain": lambda: mull.generate(model, ids, **options),
                "drafts": lambda text=text: mull.generate(model, ids, **options, decode=f"speculate:{text}"),  # type: ignore[misc]
            },
            rounds,
        )
        rate, faster = 128 / min(seconds["drafts"]), ratio(seconds, "plain", "drafts")
        print(f"speculate {text}: {rate:.0f} tokens/s, same text: {same}; speed / plain  {faster:.2f}")


def openings() -> Tensor:
    """64 bytes each, in the manner of both halves of the shipped text model's training text."""
    lines = (
        b"Natalia sold clips to 48 of her friends in April, and then she s",
        b"A train leaves the station at 9 in the morning and travels at 60",
        b"Tom has 12 apples and gives 5 of them to his sister. How many ap",
        b"To be, or not to be, that is the question: whether it is nobler ",
        b"KING RICHARD: My lord of Norfolk, what shall I do with all these",
        b"ROMEO: But soft, what light through yonder window breaks? It is ",
    )
    return torch.tensor([list(line) for line in lines])


def wavefront(rounds: int) -> None:
    model, ids = mull.load(SHIPPED / "text"), openings()
    options = {"iterations": 32, "max_new_tokens": 128, "stop_tokens": ()}
    ways = {f"wavefront {text}": {"decode": f"wavefront:{text}"} for text in ("2:8", "4:8", "2:32", "4:32")}
    ways = {"plain": {}, "exit latent:0.03": {"exit": "latent:0.03"}, **ways}
    contestants = {name: lambda way=way: mull.generate(model, ids[:1], **options, **way) for name, way in ways.items()}
    seconds = take_turns(contestants, rounds)
    plain = mull.generate(model, ids, **options)
    for name, way in ways.items():
        result = mull.generate(model, ids, **options, **way)
        same = (result.new_tokens == plain.new_tokens).float()
        used, first = result.iterations.float().mean(), int(same.cumprod(1).sum(1).min())
        print(
            f"{name}: {128 / min(seconds[name]):.0f} tokens/s; over six prompts {used:.1f} iterations, same tokens "
            f"{same.mean():.3f}, at least the first {first}; speed / plain  {ratio(seconds, 'plain', name):.2f}"
        )


PARTS = {
    "decode": decode,
    "context": context,
    "exits": exits,
    "speculation": speculation,
    "wavefront": wavefront,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=PARTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    announce()
    for name, part in PARTS.items():
        if options.only in (None, name):
            part(options.rounds)


if __name__ == "__main__":
    main()
