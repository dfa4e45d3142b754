"""Rules: what a pass of an inner-thinking layer makes of the state of a token.

With f the layer, w = w(t) the router's weight and phi = phi(t) the step encoding, a token gets

                      if it takes pass t          if it is skipped
    paper             Y + phi * w f(Y)            Y                the residual thinking connection
    paper_literal     Y + phi * w f(Y)            Y + phi * Y      as the paper's formula reads
    paper_symmetric   Y + phi * w f(Y)            Y + phi * w Y    weighted like the others
    update            Y + phi * w (f(Y) - Y)      Y                f holds its own residual, so the paper's sum adds the
                                                                   state to itself; this adds only what a pass changes
    loop              phi * w f(Y)                Y                results replace each other
    loop_symmetric    phi * w f(Y)                phi * w Y

(Inner Thinking Transformer, Chen et al., arXiv 2502.13842; `update` is ours.) Without a router w is 1, every token
takes every pass, and `loop` is the paper's Loop. `RULES.register("name")(rule)` adds one of your own.

Shapes: B batch, T positions (or 1 and N of gathered tokens), D model width.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from mull.models.registry import Registry


@dataclass(frozen=True)
class Rule:
    """How the passes change a state.

    Args:
        adds: what a pass says is added to the state; otherwise it replaces the state.
        update: of what is added, the state itself is left out.
        of_skipped: what a skipped token adds, or becomes: nothing, its own state, or that weighted.
    """

    adds: bool
    update: bool = False
    of_skipped: Literal["nothing", "state", "weighted state"] = "nothing"

    @property
    def holds(self) -> bool:
        """Whether the state of a skipped token stays as it is, and its keys and values with it."""
        return self.of_skipped == "nothing"

    def taken(self, y: Tensor, answer: Tensor, weight: Tensor | None, phi: Tensor | float) -> Tensor:
        """Y(t) of tokens that take the pass.

        Args:
            y: Y(t-1), (B, T, D).
            answer: f(Y(t-1)), (B, T, D).
            weight: w(t), (B, T, 1); None stands for 1.
            phi: phi(t), (D,) or a number.
        """
        said = answer - y if self.update else answer
        result = phi * (said if weight is None else weight * said)
        return y + result if self.adds else result

    def skipped(self, y: Tensor, weight: Tensor, phi: Tensor | float) -> Tensor:
        """Y(t) of tokens that do not take it, where they do not hold."""
        result = phi * (weight * y if self.of_skipped == "weighted state" else y)
        return y + result if self.adds else result

    def start(self, routed: bool, passes: int) -> float:
        """Where phi(t) starts for t > 0, with a router or without, in a layer that is trained at so many passes.

        Sums start so small that a token which takes all passes grows by less than sqrt(e); where only updates are added
        up, or results replace each other, phi w starts near 1.
        """
        typical = 0.5 if routed and self.of_skipped != "state" else 1.0  # what phi is multiplied by at first
        if self.update or not self.adds:
            return 1 / typical
        return 0.5 / typical / max(1, passes - 1)


RULES: Registry[Rule] = Registry("rule")
RULES.register("paper")(Rule(adds=True))
RULES.register("paper_literal")(Rule(adds=True, of_skipped="state"))
RULES.register("paper_symmetric")(Rule(adds=True, of_skipped="weighted state"))
RULES.register("update")(Rule(adds=True, update=True))
RULES.register("loop")(Rule(adds=False))
RULES.register("loop_symmetric")(Rule(adds=False, of_skipped="weighted state"))
