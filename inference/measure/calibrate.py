"""The search for the threshold of an exit rule: for a wanted depth, or for a tolerated loss of accuracy.

A higher threshold lets a position leave no later, but its answer is not always worse for it, and positions that left
answer others: mean depth falls roughly, accuracy may fall and rise again (`confidence`, `kl`). So nothing is taken to
be monotone. A grid over the whole span of the rule is measured, then again and again the two gaps beside the best
threshold so far are halved; what was measured and keeps to the limit at the fewest iterations is the answer. The
promise holds on what was measured; that the threshold is the best of all holds for rules that are smooth between the
points of the grid.
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
    rounds: int = 8,
    grid: int = 17,
) -> tuple[Exit, Result]:
    """Of the thresholds that keep to a limit, the one with the fewest iterations; of equals, the most accurate.

    Args:
        exit: the rule; its threshold does not matter.
        measure: runs a rule on held-out data: `lambda rule: evaluate(model, {None: batches}, [16], exit=rule)[0]`.
        mean_iterations: fewest iterations a position shall get on average.
        tolerated_loss: how much accuracy may fall below that of never leaving, as a share (0.005: half a point).
        rounds: how often the gaps beside the best threshold are halved; each measures twice.
        grid: thresholds that are measured first, from one end of the rule's span to the other; at least 2.

    Returns:
        The rule, and its result. Where no threshold keeps to the limit, the rule that never leaves.

    Raises:
        ValueError: not exactly one limit is given, the rule has nothing to find, or the grid is no grid.
    """
    if (mean_iterations is None) == (tolerated_loss is None):
        raise ValueError("give calibrate either mean_iterations or tolerated_loss")
    if exit.span is None:
        raise ValueError(f"exit {exit.name!r} has no threshold to find: it is the number of iterations itself")
    if grid < 2 or rounds < 0:
        raise ValueError(f"calibrate needs a grid of 2 or more and rounds of 0 or more, not {grid} and {rounds}")
    never = replace(exit, threshold=-math.inf)
    unhurried = measure(never)
    least_accuracy = -math.inf if tolerated_loss is None else unhurried.accuracy - tolerated_loss
    low, high = exit.span
    found: dict[float, Result] = {}  # by the place of the threshold in the span, 0 to 1

    def rule_at(place: float) -> Exit:
        across = low * (high / low) ** place if low > 0 else low + (high - low) * place
        return replace(exit, threshold=across)

    def badness(place: float) -> tuple[float, float, float]:
        """By how much a threshold breaks the limit, then what it costs: the smaller the better."""
        result = found[place]
        used = math.inf if result.mean_iterations is None else result.mean_iterations
        missing = max(0.0, (mean_iterations or 0.0) - used) + max(0.0, least_accuracy - result.accuracy)
        return math.inf if math.isnan(result.accuracy) else missing, used, -result.accuracy

    places = [step / (grid - 1) for step in range(grid)]
    for _ in range(rounds + 1):
        for place in places:
            found[place] = measure(rule_at(place))
        best, known = min(found, key=badness), sorted(found)
        beside = [near for near in (known.index(best) - 1, known.index(best) + 1) if 0 <= near < len(known)]
        places = [(best + known[near]) / 2 for near in beside]
    if badness(best)[0] or badness(best)[1] >= (unhurried.mean_iterations or math.inf):
        return never, unhurried
    return rule_at(best), found[best]
