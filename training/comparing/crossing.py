"""Where a curve first reaches a height, in many draws at once.

Between measured points a curve is a straight line over log2 x, since costs are doubled, not added to. The first point
is where one stands; what lies below it needs nothing (x of the first point), what no point reaches is infinitely dear.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def first_reached(x: Floats, y: Floats, height: Floats) -> Floats:
    """The least x, (draws,), at which each curve is as high as `height`, or inf.

    Args:
        x: (draws, points), above 0; the points behind the first may come in any order, and none lies left of it.
        y: (draws, points), the height of the curve at these.
        height: (draws,).
    """
    order = np.argsort(x, axis=1, kind="stable")
    over, up = np.log2(np.take_along_axis(x, order, axis=1)), np.take_along_axis(y, order, axis=1)
    wanted = height[:, None]
    crosses = (up[:, :-1] < wanted) & (wanted <= up[:, 1:])
    rise = np.where(crosses, up[:, 1:] - up[:, :-1], 1.0)
    places = over[:, :-1] + np.where(crosses, wanted - up[:, :-1], 0.0) / rise * (over[:, 1:] - over[:, :-1])
    found = np.full(len(x), np.inf)
    some = crosses.any(axis=1)
    found[some] = places[some, crosses[some].argmax(axis=1)]
    found[height <= up[:, 0]] = over[height <= up[:, 0], 0]
    return np.asarray(np.exp2(found), dtype=float)


def along(x: Floats, values: Floats, at: Floats) -> Floats:
    """What costs `values` (draws, points) at x (draws, points) costs at `at` (draws,), by straight lines between the
    logarithms of both; inf beyond the points."""
    found = np.full(len(x), np.inf)
    for draw in np.flatnonzero(np.isfinite(at)):
        order = np.argsort(x[draw], kind="stable")
        logs = np.interp(np.log2(at[draw]), np.log2(x[draw][order]), np.log2(values[draw][order]))
        found[draw] = 2**logs
    return found
