"""Timing for the benchmarks: contestants take turns within one run, so that a shared machine's moods cancel out."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch


def take_turns(contestants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contestant in each round, after one round of warm-up; every round runs all of them in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for warm in [True] + [False] * rounds:
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            if not warm:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: Mapping[str, list[float]], one: str, other: str) -> float:
    """Median over rounds of one contestant's time divided by the other's in the same round."""
    return statistics.median(a / b for a, b in zip(seconds[one], seconds[other], strict=True))


def peak_bytes(run: Callable[[], object]) -> int:
    """Largest sum of live CPU tensor bytes that `run` reaches above what was there when it began."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    live = peak = 0
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def announce() -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
