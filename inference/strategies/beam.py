"""Beam search over steps: a scorer keeps the best beginnings (Snell et al., arXiv 2408.03314; numbers as in Liu et al.,
arXiv 2502.06703).

    N first steps are drawn;  then, step by step:
        score each beginning by its path so far, keep the best N / M, draw M next steps for each
    until all that are kept have ended, or after `rounds` steps;  then choose among those that ended

Not a beam search over tokens, which follows likelihood alone. With N = M = 1 this is plain writing, step by step.

Deviations: the papers score with a trained reward; here any scorer will do, the log-probability by default. An ended
text competes with beginnings for its place (searching.py), where the code of the second paper sets it aside.
"""

from dataclasses import dataclass

from mull.inference.strategies.contract import strategy
from mull.inference.strategies.searching import Searching


@strategy
@dataclass(frozen=True)
class Beam(Searching):
    """See the head of this file."""

    name, example = "beam", "beam:16,width=4,scorer=process"
