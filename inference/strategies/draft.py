"""Chain of Draft: of each step only its result is written (Xu et al., arXiv 2502.18600).

    problem <draft>  result <step> result <step> ... </think> answer

Deviation: the paper asks a large model for "five words at most" a step and shows examples; here the terse trace is a
style that the model was trained on, of the same problems as the full chain. The paper sees models under three billion
parameters lose much more by it than large ones.
"""

from dataclasses import dataclass

from mull.inference.strategies.chain import InOneGo
from mull.inference.strategies.contract import strategy


@strategy
@dataclass(frozen=True)
class Draft(InOneGo):
    """See the head of this file."""

    name = example = style = "draft"
