"""Direct: the answer at once, so that only iterations think.

    problem <direct>  answer

What every other strategy is to be compared with at equal FLOPs: the same model with more iterations.
"""

from dataclasses import dataclass

from mull.inference.strategies.chain import InOneGo
from mull.inference.strategies.contract import strategy


@strategy
@dataclass(frozen=True)
class Direct(InOneGo):
    """See the head of this file."""

    name = example = style = "direct"
