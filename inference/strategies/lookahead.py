"""Lookahead search: a beam search whose beginnings are scored by where they lead (Snell et al., arXiv 2408.03314).

    as beam.py, but the score of a beginning is that of its greedy continuation, k steps further, which is thrown away

It costs k + 1 times the steps of a beam search; with k = 0 it is one. The continuations are counted as the scorer's.
"""

from dataclasses import dataclass

from mull.inference.strategies.contract import strategy
from mull.inference.strategies.searching import Searching


@strategy
@dataclass(frozen=True)
class Lookahead(Searching):
    """See the head of this file.

    Args:
        k: steps that are written greedily beyond each beginning.
    """

    k: int = 1

    name, example = "lookahead", "lookahead:16,width=4,k=2,scorer=process"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.within(0, k=self.k)

    @property
    def ahead(self) -> int:
        return self.k
