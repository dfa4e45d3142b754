"""Ways of spending compute on one answer, one a file; every file of this package is imported, so a new one is known by
being there."""

from importlib import import_module
from pkgutil import iter_modules

from mull.inference.strategies.contract import (
    STRATEGIES,
    Event,
    Found,
    Solution,
    Strategy,
    answer_of,
    choose_strategy,
    samples,
    strategy,
)
from mull.inference.strategies.meter import Cost, Meter
from mull.inference.strategies.solver import Branch, Line, Manner, Marks, Problem, Solver, Token

for found in iter_modules(__path__):
    import_module(f"{__name__}.{found.name}")

__all__ = [
    "STRATEGIES",
    "Branch",
    "Cost",
    "Event",
    "Found",
    "Line",
    "Manner",
    "Marks",
    "Meter",
    "Problem",
    "Solution",
    "Solver",
    "Strategy",
    "Token",
    "answer_of",
    "choose_strategy",
    "samples",
    "strategy",
]
