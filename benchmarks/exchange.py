"""Do the intervals of an exchange rate hold the true rate? python benchmarks/exchange.py [--comparisons 150] [--rate 2]

Comparisons are simulated whose rate is known: a problem of height h is answered right with the probability

    p = 1 / (1 + exp(h - log2(iterations) - log2(N) / log2(rate)))

so that doubling the iterations does what `rate` times as many samples do. Every comparison has problems of its own, and
every cell answers of its own to them. Printed is the share of the 95 % intervals that hold the rate; seeds are fixed.
"""

from __future__ import annotations

import argparse
import math

import numpy as np

from mull.training.comparing.cells import Answered, Cell, Place
from mull.training.comparing.exchange import Exchange, exchange

SAMPLES = (1, 2, 4, 8, 16)


def simulated(seed: int, problems: int, rate: float) -> list[Cell]:
    """The cells of one comparison: chains at 1 and 2 iterations, and votes of N at 1 iteration."""
    rng = np.random.default_rng([7, seed])
    heights = rng.normal(1.0, 2.0, problems)
    found = []
    for iterations, samples in ((2, 1), *((1, n) for n in SAMPLES)):
        worth = math.log2(iterations) + math.log2(samples) / math.log2(rate)
        right = rng.random(problems) < 1 / (1 + np.exp(heights - worth))
        answered = tuple(Answered(bool(each), 100.0 * iterations * samples, 8 * samples, samples, 0) for each in right)
        strategy = "chain" if samples == 1 else f"majority:{samples}"
        place = Place("simulated", "", strategy, iterations, None)
        found.append(Cell(place, str(seed), answered, samples=None if samples == 1 else samples, style="chain"))
    return found


def rate_of(cells: list[Cell]) -> Exchange:
    """The rate in samples."""
    [found] = [each for each in exchange(cells) if each.currency == "samples"]
    return found


def holds(found: Exchange, rate: float) -> bool:
    """Whether the interval holds the rate; an end that is None lies beyond everything measured."""
    return (found.factor_low or math.inf) <= rate <= (found.factor_high or math.inf)


def main(comparisons: int, problems: int, rate: float) -> None:
    """Print the share, with twice its standard error."""
    found = [rate_of(simulated(seed, problems, rate)) for seed in range(comparisons)]
    share = np.mean([holds(each, rate) for each in found])
    error = 2 * math.sqrt(share * (1 - share) / comparisons)
    known = [each.factor for each in found if each.factor is not None]
    print(f"{comparisons} comparisons of {problems} problems, rate {rate:g}: median estimate {np.median(known):.2f}")
    print(f"intervals that hold the rate: {100 * share:.1f} % +- {100 * error:.1f}")
    print(f"open above: {100 * np.mean([each.factor_high is None for each in found]):.0f} %")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparisons", type=int, default=150)
    parser.add_argument("--problems", type=int, default=300)
    parser.add_argument("--rate", type=float, default=2.0)
    options = parser.parse_args()
    main(options.comparisons, options.problems, options.rate)
