"""Rules: what a pass of an inner-thinking layer makes of the state of a token.

With f the layer, w = w(t) the router's weight and phi = phi(t) the step encoding, a token that takes pass t gets

    paper             Y + phi * w f(Y)              residual thinking connection; skipped tokens hold
    paper_literal     Y + phi * w f(Y)              skipped tokens: Y + phi * Y, as the paper's formula reads
    paper_symmetric   Y + phi * w f(Y)              skipped tokens: Y + phi * w Y, weighted like the others
    update            Y + phi * w (f(Y) - Y)        f holds its own residual, so the paper's sum adds the state to
    itself;
                                                    this adds only what a pass changes
    loop              phi * w f(Y)                  results replace each other; skipped tokens hold
    loop_symmetric    phi * w f(Y)                  skipped tokens: phi * w Y

(Inner Thinking Transformer, Chen et al., arXiv 2502.13842; `update` is ours.) Without a router w is 1, every token
takes every pass, and `loop` is the paper's Loop. A rule of your own is a class with `@RULES.register("name")`.

Shapes: B batch, T positions (or 1 and N of gathered tokens), D model width.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from mull.models.registry import Registry


class Rule(ABC):
    """How the passes change a state.

    Attributes:
        holds: the state of a skipped token stays as it is, and its keys and values with it.
    """

    holds: ClassVar[bool] = True

    @abstractmethod
    def taken(self, y: Tensor, answer: Tensor, weight: Tensor | None, phi: Tensor | float) -> Tensor:
        """Y(t) of tokens that take the pass.

        Args:
            y, answer: Y(t-1) and f(Y(t-1)), (B, T, D) each.
            weight: w(t), (B, T, 1); None stands for 1.
            phi: phi(t), (D,) or a number.
        """

    def skipped(self, y: Tensor, weight: Tensor, phi: Tensor | float) -> Tensor:
        """Y(t) of tokens that do not take it."""
        return y

    @abstractmethod
    def start(self, routed: bool, passes: int) -> float:
        """Where phi(t) starts for t > 0, with a router or without, where the layer is trained at so many passes.

        A router's weight is near 1/2 at first. Sums start so small that a token which takes all passes grows by less
        than sqrt(e); where only updates are added up, or results replace each other, phi w starts near 1.
        """


RULES: Registry[type[Rule]] = Registry("rule")


def weighted(answer: Tensor, weight: Tensor | None) -> Tensor:
    """w f, (B, T, D)."""
    return answer if weight is None else weight * answer


@RULES.register("paper")
class Paper(Rule):
    """Whole answers add up."""

    def taken(self, y: Tensor, answer: Tensor, weight: Tensor | None, phi: Tensor | float) -> Tensor:
        return y + phi * weighted(answer, weight)

    def start(self, routed: bool, passes: int) -> float:
        return (1.0 if routed else 0.5) / max(1, passes - 1)


@RULES.register("paper_literal")
class PaperLiteral(Paper):
    """Skipped tokens add their own state, unweighted."""

    holds = False

    def skipped(self, y: Tensor, weight: Tensor, phi: Tensor | float) -> Tensor:
        return y + phi * y

    def start(self, routed: bool, passes: int) -> float:  # skipped tokens have no weight of 1/2
        return 0.5 / max(1, passes - 1)


@RULES.register("paper_symmetric")
class PaperSymmetric(Paper):
    """Skipped tokens add their own state, weighted."""

    holds = False

    def skipped(self, y: Tensor, weight: Tensor, phi: Tensor | float) -> Tensor:
        return y + phi * weighted(y, weight)


@RULES.register("update")
class Update(Rule):
    """Only what a pass changes is added up."""

    def taken(self, y: Tensor, answer: Tensor, weight: Tensor | None, phi: Tensor | float) -> Tensor:
        return y + phi * weighted(answer - y, weight)

    def start(self, routed: bool, passes: int) -> float:
        return 2.0 if routed else 1.0


@RULES.register("loop")
class Loop(Rule):
    """Each result replaces the one before."""

    def taken(self, y: Tensor, answer: Tensor, weight: Tensor | None, phi: Tensor | float) -> Tensor:
        return phi * weighted(answer, weight)

    def start(self, routed: bool, passes: int) -> float:
        return 2.0 if routed else 1.0


@RULES.register("loop_symmetric")
class LoopSymmetric(Loop):
    """Skipped tokens are scaled by their weight."""

    holds = False

    def skipped(self, y: Tensor, weight: Tensor, phi: Tensor | float) -> Tensor:
        return phi * weighted(y, weight)
