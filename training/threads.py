"""How many CPU threads a run takes where its configuration names none: the fastest number, measured once and kept.

Two threads are not always faster than one: small matrices do not fill them, and on a machine with other work one waits
for the other, up to 20 times as long as the work takes. But sums come out differently in their last digits, so a run
that goes on must take the number that it began with, which is why it is written into its folder.
"""

from __future__ import annotations

import time

import torch

from mull.checkpoints.replacing import replace_all
from mull.training.cli import TrainingCLI
from mull.training.saying import say
from mull.training.states import LAST

RECORD = "threads.txt"  # in the folder of the trainer's state
WORTH = 0.9  # more threads must take at most this share of the time of fewer
ROUNDS = 2


def choose_threads(run: TrainingCLI) -> None:
    """Set torch's number of CPU threads for a run: as its configuration says, as it was before, or as it is fastest.

    A network on another device than the CPU, one of several processes, data without `training_batch`, and a run whose
    state is older than this record keep torch's own number.
    """
    record = run.states / RECORD
    threads = torch.get_num_threads()  # where the configuration names a number, it is this one already
    if run.config.threads is None:
        if record.is_file() and record.read_text().strip().isdecimal():
            threads = max(1, int(record.read_text()))
        elif threads > 1 and can_be_measured(run):
            seconds = measured(run, sorted({1, 2, threads}))
            threads = fastest(seconds)
            said = ", ".join(f"{each:.3f} s with {count}" for count, each in seconds.items())
            say(f"threads: {threads} (a batch takes {said})")
        torch.set_num_threads(threads)
    if run.trainer.is_global_zero:
        replace_all(run.states, {RECORD: f"{threads}\n".encode()})


def can_be_measured(run: TrainingCLI) -> bool:
    """Whether a batch can be tried before the trainer is at work."""
    alone_on_cpu = run.trainer.world_size == 1 and run.trainer.strategy.root_device.type == "cpu"
    return alone_on_cpu and not (run.states / LAST).exists() and hasattr(run.datamodule, "training_batch")


def measured(run: TrainingCLI, counts: list[int]) -> dict[int, float]:
    """Seconds of forward and backward of the last training batch, by number of threads; the run is left as it was.

    The last batch, since a curriculum begins with small ones; the first where epochs are counted. The numbers take
    turns, after one round of warm-up.
    """
    module, own = run.model, torch.get_num_threads()
    last = max(0, run.trainer.max_steps * run.trainer.accumulate_grad_batches - 1)
    batch = run.datamodule.training_batch(last)
    training = module.training
    module.freeze_others()  # as training will: what is not trained has no backward pass
    seconds = dict.fromkeys(counts, float("inf"))
    with torch.random.fork_rng(devices=[]):
        module.train()
        for turn in range(1 + ROUNDS):
            for count in counts:
                torch.set_num_threads(count)
                start = time.perf_counter()
                with run.trainer.precision_plugin.train_step_context():
                    loss = module.loss.of_batch(module.output_for(batch["input_ids"], last), batch)
                loss.backward()
                if turn:
                    seconds[count] = min(seconds[count], time.perf_counter() - start)
                module.zero_grad()
    module.train(training)
    torch.set_num_threads(own)
    return seconds


def fastest(seconds: dict[int, float]) -> int:
    """The number of threads to take: more of them only where that is clearly faster than fewer."""
    best = min(seconds)
    for count in sorted(seconds):
        if seconds[count] <= WORTH * seconds[best]:
            best = count
    return best
