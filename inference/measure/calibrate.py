"""The search for the threshold of an exit rule: for a wanted depth, or for a tolerated loss of accuracy.

Bisection takes it that a higher threshold leaves sooner and loses more. That holds of each position by definition, of a
mean accuracy only roughly (`confidence`, `kl`): what is returned was measured and keeps to the limit, but a higher
threshold may do so too.
"""

import math
from collections.abc import Callable
from dataclasses import replace

from mull.inference.exits import Exit
from mull.inference.measure.results import Result


def calibrate(
    exit: Exit,
    measure: Callable[[Exit], Result],
    *,
    mean_iterations: float | None = None,
    tolerated_loss: float | None = None,
    rounds: int = 12,
) -> tuple[Exit, Result]:
    """The rule with the highest threshold that keeps to a limit, by bisection: a higher one leaves sooner.

    Args:
        exit: the rule; its threshold does not matter.
        measure: runs a rule on held-out data: `lambda rule: evaluate(model, {None: batches}, [16], exit=rule)[0]`.
        mean_iterations: fewest iterations a position shall get on average.
        tolerated_loss: how much accuracy may fall below that of never leaving, as a share (0.005: half a point).
        rounds: of bisection; each measures once.

    Returns:
        The rule, and its result. Where no threshold keeps to the limit, the rule that never leaves.

    Raises:
        ValueError: not exactly one limit is given, or the rule has nothing to find.
    """
    if (mean_iterations is None) == (tolerated_loss is None):
        raise ValueError("give calibrate either mean_iterations or tolerated_loss")
    if exit.span is None:
        raise ValueError(f"exit {exit.name!r} has no threshold to find: it is the number of iterations itself")
    never = replace(exit, threshold=-math.inf)
    best, found = never, measure(never)
    least_accuracy = -math.inf if tolerated_loss is None else found.accuracy - tolerated_loss
    low, high = exit.span
    for _ in range(rounds):
        middle = math.sqrt(low * high) if low > 0 else (low + high) / 2
        rule = replace(exit, threshold=middle)
        measured = measure(rule)
        if (measured.mean_iterations or 0) >= (mean_iterations or 0) and measured.accuracy >= least_accuracy:
            low, best, found = middle, rule, measured
        else:
            high = middle
    return best, found
