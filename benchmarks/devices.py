"""Does a second device say what the CPU says, and how much sooner? python benchmarks/devices.py [--device cuda]

1. Answers of shipped folders, in fp64, where rounding is small and a tensor left behind is not: the largest relative
   difference of logits; greedy tokens of each way of decoding, a padded row among them; and what `evaluate` measures.
2. Training: four steps of two batches under the trainer, from states of zero, since a device draws random ones by
   itself: the largest difference of the losses that are logged, and of the weights, relative to the largest weight.
   TensorFloat-32 is off.
3. Speed: a training step of (2,4,2) layers at 8 iterations on 16 x 512 tokens, by width and number type, eager and
   compiled, beside the CPU's; and the tokens a second that greedy decoding of 64 rows writes.

The exit status is 1 where something differs by more than its limit.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from timing import announce
from torch import Tensor
from torch.nn import functional as F

import mull
from mull.inference.measure.evaluate import evaluate
from mull.training import iterations, losses
from mull.training.data import Parity, StateTracking, Sudoku, TaskData
from mull.training.module import TrainingModule
from mull.training.optimizers import AdamW, MuonAdamW

PROMPTS = {"parity": "1 0 1 1 0 1", "text": "The ", "inner-thinking": "The "}
WAYS: list[dict[str, Any]] = [{}, {"exit": "latent:0.05"}, {"decode": "speculate:2:4"}, {"decode": "wavefront:2:4"}]
MEASURED = {"parity": (Parity(), 64), "state_tracking": (StateTracking(), 64), "sudoku": (Sudoku(holes=18, side=6), 18)}
RUNS: dict[str, dict[str, Any]] = {
    "AdamW": {"optimizer": AdamW()},
    "Muon and a window": {"optimizer": MuonAdamW(), "backprop_iterations": 3},
    "loss expected over iterations": {"loss": losses.ExpectedOverIterations()},
    "consistency": {"loss": losses.Consistency()},
    "a count for each row": {"iterations": iterations.PoissonPerSequence(6, maximum=9)},
    "progressive": {"iterations": iterations.Progressive(6, share=1.0)},
    "recomputed iterations": {"checkpoint_iterations": True},
}
failures: list[str] = []


def check(what: str, difference: float, limit: float) -> None:
    """Say how far apart the devices are, and keep it in mind where it is too far."""
    print(f"{what:<64}{difference:9.1e}   limit {limit:.0e}", flush=True)
    if not difference <= limit:
        failures.append(what)


def apart(one: Tensor, other: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((one.cpu() - other.cpu()).abs().max() / one.abs().max().clamp(min=1e-30).cpu())


def answers(device: str) -> None:
    for name, prompt in PROMPTS.items():
        here, there = (mull.load(name, place, dtype=torch.float64) for place in ("cpu", device))
        assert here.tokenizer is not None
        ids = torch.tensor([here.tokenizer.encode(prompt).ids])
        rows, mask = torch.cat([ids, ids.flip(1)]), torch.ones(2, ids.shape[1], dtype=torch.bool)
        mask[1, 0] = False
        check(f"{name}: logits", apart(here(rows).logits, there(rows.to(device)).logits), 1e-9)
        for way in WAYS:
            if way and name == "inner-thinking":
                continue  # no exits, and written token by token
            said = [mull.generate(m, rows, 8, max_new_tokens=24, attention_mask=mask, **way) for m in (here, there)]
            same = said[0].tokens.shape == said[1].tokens.shape
            wrong = int((said[0].tokens != said[1].tokens.cpu()).sum()) if same else -1
            check(f"{name}: tokens that differ, {way or 'plain'}", float(wrong if same else "nan"), 0)
    for name, (task, difficulty) in MEASURED.items():
        data = TaskData(task, batch_size=32, difficulty=[difficulty])
        found = [
            evaluate(mull.load(name, place), data.evaluation_batches(examples=32), [8, 64]) for place in ("cpu", device)
        ]
        gaps = [abs((a.accuracy or 0) - (b.accuracy or 0)) for a, b in zip(*found, strict=True)]
        check(f"{name}: measured accuracy at 8 and 64 iterations", max(gaps), 0.002)


def fit(run: dict[str, Any], accelerator: str) -> tuple[dict[str, float], Tensor]:
    """What was logged last, and all weights in one row."""
    torch.manual_seed(0)
    network = mull.RecurrentDepthTransformer(
        mull.RecurrentDepthConfig(
            vocab_size=8,
            d_model=64,
            n_heads=4,
            n_prelude=1,
            n_core=2,
            n_coda=1,
            mean_iterations=6,
            exit_gate=True,
            initial_state="zero",
        )
    )
    module = TrainingModule(
        network, **{"iterations": iterations.Fixed(6), "loss": losses.LastIteration(), "optimizer": AdamW()} | run
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            max_steps=4, accumulate_grad_batches=2, accelerator=accelerator, devices=1, gradient_clip_val=1.0,
            logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            default_root_dir=folder, limit_val_batches=0,
        )  # fmt: skip
        trainer.fit(module, TaskData(Parity(length=24), batch_size=16))
    logged = {name: float(value) for name, value in trainer.callback_metrics.items() if "per_second" not in name}
    return logged, torch.cat([p.detach().flatten().cpu() for p in network.parameters()])


def training(accelerator: str) -> None:
    for name, run in RUNS.items():
        (here, weights), (there, others) = fit(run, "cpu"), fit(run, accelerator)
        check(f"training, {name}: what is logged", max(abs(here[k] - there[k]) for k in here), 1e-3)
        check(f"training, {name}: weights", apart(weights, others), 2e-3)


def seconds(run: Callable[[], object], device: str, rounds: int = 5) -> float:
    """The best of some rounds; what the device still has to do is waited for."""
    best = float("inf")
    for _ in range(rounds + 2):
        begin = time.perf_counter()
        run()
        if device != "cpu":
            torch.accelerator.synchronize()
        best = min(best, time.perf_counter() - begin)
    return best


def speed(device: str) -> None:
    for width in (64, 256, 512):
        for dtype in (torch.float32, torch.bfloat16):
            line = [f"step of width {width}, {str(dtype).removeprefix('torch.')}:"]
            for compiled in (False, True):
                torch.manual_seed(0)
                config = mull.RecurrentDepthConfig(
                    vocab_size=512, d_model=width, n_heads=4, n_prelude=2, n_core=4, n_coda=2, mean_iterations=8
                )
                model = mull.RecurrentDepthTransformer(config).train().to(device)
                if compiled:
                    model.compile_training()
                ids = torch.randint(0, 512, (16, 512), device=device)

                def step(model: Any = model, ids: Tensor = ids, dtype: torch.dtype = dtype) -> None:
                    model.zero_grad()
                    with torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
                        logits = model(ids, 8).logits
                    F.cross_entropy(logits.float().flatten(0, 1), ids.flatten()).backward()

                spent = seconds(step, device)
                line.append(
                    f"{'compiled' if compiled else 'eager'} {1e3 * spent:.1f} ms, {ids.numel() / spent:,.0f} tokens/s"
                )
            print(" ".join(line), flush=True)
    model = mull.load("text", device)
    prompt = torch.randint(1, 50, (64, 16))
    for count in (1, 8, 32):
        spent = seconds(lambda count=count: mull.generate(model, prompt, count, max_new_tokens=32), device, 2)
        print(f"greedy decoding of 64 rows at {count} iterations: {64 * 32 / spent:,.0f} tokens/s", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    device = parser.parse_args().device
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # which devices it did not use
    torch.backends.cuda.matmul.allow_tf32 = False
    announce()
    if device != "cpu":
        print(torch.cuda.get_device_name() if device == "cuda" else device)
    for part in (answers, training, speed):
        begin = time.perf_counter()
        part(device)
        print(f"{part.__name__}: {time.perf_counter() - begin:.0f} s", flush=True)
    print("differs: " + ", ".join(failures) if failures else "nothing differs")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
