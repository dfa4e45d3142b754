"""DVTS, diverse verifier tree search: several small searches in place of a large one (Beeching et al., 2024, "Scaling
test-time compute with open models"; Liu et al., arXiv 2502.06703).

    N / M trees, each on its own:  draw M next steps, keep the best one, and so on to the end
    then choose among the N / M ends

The same number of steps as a beam search of N and M, but no tree can push another out: what is kept stays diverse.

Deviations: as in beam.py.
"""

from dataclasses import dataclass

from mull.inference.strategies.contract import strategy
from mull.inference.strategies.searching import Searching


@strategy
@dataclass(frozen=True)
class DVTS(Searching):
    """See the head of this file."""

    name, example = "dvts", "dvts:16,width=4,scorer=process"

    @property
    def shape(self) -> dict[str, int]:
        return {"trees": self.n // self.width, "first": self.width, "keep": 1}
