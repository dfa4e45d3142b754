"""What training minimises. Labels are aligned with positions (nothing is shifted); IGNORE positions do not count.

A loss is a mean over the scored positions of one batch of one device, and 0 without gradient where there are none.
Accumulated batches and those of several devices count by the positions that they score (weighting.py): the loss of an
optimizer step is the mean over all of its scored positions, as if they were one batch.

    last iteration    L = L_R, the cross entropy after the last iteration
    expected          L = sum_t p(t) L_t - beta H(p), p(t) = lambda_t prod_{j<t} (1 - lambda_j), the last the rest;
                      lambda_t is the sigmoid of the model's exit gate             (Ouro stage I, arXiv 2510.25741)
    halt              L = mean over t = 2 .. R of the cross entropy between 1 - lambda_t and the wish to go on
                      w_t = sigmoid(k (max(0, L_{t-1} - L_t) - gamma)); trains the exit gate only    (Ouro stage II)
    several           L = sum_j w_j L_{ceil(x_j R)} / sum_j w_j, at shares x_j of the depth
    consistency       L = L_R + w KL(p_R || p_{ceil(x R)}), at a share x of the depth, p_R without gradient
    fixed point       L = L_R + w |s_R - s_{R-1}|^2 / |s_R|^2, by position       (Think Shallow, arXiv 2608.18222)
    process reward    L = L_R + w B, B the binary cross entropy between the process reward after R iterations and
                      whether the answer can still be reached, at the ends of steps; or the mean of B alone

Shapes: B batch, T positions, V vocabulary, R iterations.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mull.models import IteratedModel, LanguageModel, ModelOutput
from mull.models.labels import scored, token_losses
from mull.models.loop import Iterations
from mull.models.precision import wide
from mull.training.iterations import IterationSampler

NO_FIXED_POINT = "a fixed point is one of a recurrent-depth model: take another loss for this family"


class Loss(ABC):
    """A loss names the counts it reads answers at, and turns the output into a scalar in nats per scored token."""

    asks_gate: ClassVar[bool] = False  # whether it trains the exit gate

    def read_at(self, iterations: Iterations | None) -> Sequence[int]:  # noqa: ARG002
        """Counts at which forward must read answers out, besides the last."""
        return range(0)

    def trained(self, network: nn.Module) -> list[nn.Parameter] | None:  # noqa: ARG002
        """The parameters that are trained, where the loss is for some of them; None means all. The others are frozen.

        Raises:
            ValueError: the network does not have them.
        """
        return None

    def begins_anew(self, network: nn.Module) -> list[nn.Parameter]:  # noqa: ARG002
        """Those that keep their fresh weights where a run starts from a folder that has trained ones (`--from`)."""
        return []

    def check(self, sampler: IterationSampler | None) -> None:
        """Raise a ValueError, before anything is trained, where the counts of a sampler (None: no loop) teach nothing:
        this one refuses a count for each row where the loss needs one for the batch."""
        self.read_at(None if sampler is None else sampler(0, 0, 1))

    @property
    def asks_value(self) -> bool:
        """Whether it trains the process reward."""
        return False

    @property
    def asks_tokens(self) -> bool:
        """Whether it needs labels."""
        return True

    @abstractmethod
    def __call__(self, output: ModelOutput, labels: Tensor) -> Tensor:
        """Scalar loss of an output for labels (B, T)."""

    def of_batch(self, output: ModelOutput, batch: dict[str, Tensor]) -> Tensor:
        """The same for a training batch, which may hold more than labels."""
        return self(output, batch["labels"])

    def counted(self, batch: dict[str, Tensor]) -> Tensor:
        """Bool, with one true for each of what the loss is a mean of: the scored positions (B, T) of a batch."""
        return scored(batch["labels"])


class LastIteration(Loss):
    """Cross entropy after the last iteration."""

    def __call__(self, output: ModelOutput, labels: Tensor) -> Tensor:
        return token_losses(output.logits, labels).sum() / number_scored(labels)


class SeveralIterations(Loss):
    """A weighted mean of the cross entropy at several depths, so that the answer is right early and stays right.

    Args:
        weights: by share of the iterations, above 0 and at most 1: {0.5: 1, 1: 1} means R/2, rounded up, and R alike.

    Counts before the gradient window of `backprop_iterations` train what reads the answer out, not the loop.
    """

    def __init__(self, weights: dict[float, float]) -> None:
        if not weights or not all(0 < share <= 1 and 0 <= weight < math.inf for share, weight in weights.items()):
            raise ValueError(f"weights must name shares above 0, at most 1, and weights of at least 0, not {weights}")
        if sum(weights.values()) == 0:
            raise ValueError(f"weights must not all be 0: {weights}")
        self.weights = {float(share): float(weight) for share, weight in weights.items()}

    def read_at(self, iterations: Iterations | None) -> list[int]:
        depth = one_count(iterations, "a loss at several iterations")
        return sorted({count_at(share, depth) for share in self.weights})

    def __call__(self, output: ModelOutput, labels: Tensor) -> Tensor:
        depth, total = depth_of(output), output.logits.new_zeros(())
        for share, weight in self.weights.items():
            logits = output.readings[count_at(share, depth)].logits
            total = total + weight * token_losses(logits, labels).sum()
        return total / sum(self.weights.values()) / number_scored(labels)


class Consistency(Loss):
    """Cross entropy after the last iteration, and a term that asks an earlier answer to be the last one already: their
    divergence KL(p_R || p_{ceil(x R)}) by position. The last answer is the teacher, and gets no gradient by the term.

    Args:
        weight: w, in nats for each nat of divergence.
        share: x, the share of the depth at which the earlier answer is read, above 0 and below 1.

    Counts before the gradient window of `backprop_iterations` train what reads the answer out, not the loop.
    """

    def __init__(self, weight: float = 0.1, share: float = 0.5) -> None:
        if not 0 <= weight < math.inf or not 0 < share < 1:
            raise ValueError(f"weight must be at least 0 and share between 0 and 1, not {weight} and {share}")
        self.weight, self.share = weight, share

    def read_at(self, iterations: Iterations | None) -> list[int]:
        return [count_at(self.share, one_count(iterations, "Consistency"))]

    def __call__(self, output: ModelOutput, labels: Tensor) -> Tensor:
        early = log_probabilities(output.readings[count_at(self.share, depth_of(output))].logits)
        last = log_probabilities(output.logits.detach())
        apart = F.kl_div(early, last, reduction="none", log_target=True).sum(dim=-1)  # KL(last || early), (B, T)
        losses = token_losses(output.logits, labels) + self.weight * apart * scored(labels)
        return losses.sum() / number_scored(labels)


class FixedPoint(Loss):
    """Cross entropy after the last iteration, and a term that asks the last iteration to move nothing. Positions of a
    single iteration have no term.

    Args:
        weight: w, in nats for each unit of the squared relative movement.
    """

    def __init__(self, weight: float = 0.1) -> None:
        if not 0 <= weight < math.inf:
            raise ValueError(f"weight must be a number of at least 0, not {weight}")
        self.weight = weight

    def trained(self, network: nn.Module) -> None:
        if isinstance(network, LanguageModel) and not isinstance(network, IteratedModel):
            raise ValueError(NO_FIXED_POINT)

    def __call__(self, output: ModelOutput, labels: Tensor) -> Tensor:
        losses = token_losses(output.logits, labels)
        residual, moved = output.residual, scored(labels) & (output.iterations > 1)
        if residual is not None:
            losses = losses + self.weight * residual.square() * moved
        elif bool(moved.any()):
            raise ValueError(NO_FIXED_POINT)
        return losses.sum() / number_scored(labels)


class ExpectedOverIterations(Loss):
    """Cross entropy averaged over the exit gate's distribution, minus an entropy term that keeps it spread out.

    Args:
        entropy_weight: beta, in nats per nat; Ouro uses 0.1, then 0.05.
    """

    asks_gate: ClassVar[bool] = True

    def __init__(self, entropy_weight: float = 0.1) -> None:
        if not 0 <= entropy_weight < math.inf:
            raise ValueError(f"entropy_weight must be a number of at least 0, not {entropy_weight}")
        self.entropy_weight = entropy_weight

    def read_at(self, iterations: Iterations | None) -> range:
        return range(1, 1 + one_count(iterations, "the expected loss"))

    def __call__(self, output: ModelOutput, labels: Tensor) -> Tensor:
        exit_logits, losses = by_iteration(output, labels, "the expected loss")
        log_p = exit_log_distribution(exit_logits)
        expected = (log_p.exp() * (losses + self.entropy_weight * log_p)).sum(dim=0)  # -beta H = beta sum p log p
        return (expected * scored(labels)).sum() / number_scored(labels)


class HaltOnImprovement(Loss):
    """Teaches the exit gate of a finished model to go on while another iteration helps, and to halt where none does.

    Everything but the gate is frozen, so there is no gradient through the loop, and a run costs little. It starts from
    a trained model: `mull train --from FOLDER`, whose gate, if it has none, is a fresh one. The first iteration has no
    improvement to be judged by, so a batch of one iteration teaches nothing.

    Args:
        sharpness: k, how fast the wish to go on grows with the improvement, for each nat.
        least: gamma, the improvement in nats at which going on and halting are wished for alike.
    """

    asks_gate: ClassVar[bool] = True

    def __init__(self, sharpness: float = 50.0, least: float = 0.005) -> None:
        if not 0 < sharpness < math.inf or not 0 <= least < math.inf:
            raise ValueError(f"sharpness must be above 0 and least at least 0, not {sharpness} and {least}")
        self.sharpness, self.least = sharpness, least

    def trained(self, network: nn.Module) -> list[nn.Parameter]:
        found = network.gate_parameters() if isinstance(network, IteratedModel) else []
        if not found:
            raise ValueError(
                f"HaltOnImprovement trains the exit gate, and this {type(network).__name__} has none: set "
                "model.network.init_args.config.exit_gate to true"
            )
        return found

    def read_at(self, iterations: Iterations | None) -> range:
        return range(1, 1 + one_count(iterations, "HaltOnImprovement"))

    def check(self, sampler: IterationSampler | None) -> None:
        super().check(sampler)
        if sampler is not None and sampler.maximum == 1:
            raise ValueError(
                f"HaltOnImprovement compares each iteration with the next, and {type(sampler).__name__} draws 1 at "
                "most: let it draw more"
            )

    def __call__(self, output: ModelOutput, labels: Tensor) -> Tensor:
        exit_logits, losses = by_iteration(output, labels, "HaltOnImprovement")
        improvement = (losses[:-1] - losses[1:]).clamp(min=0).detach()
        wish = torch.sigmoid(self.sharpness * (improvement - self.least))
        stay = -wide(exit_logits[1:])  # the logit of 1 - lambda
        terms = F.binary_cross_entropy_with_logits(stay, wish, reduction="none").sum(dim=0) / max(1, len(wish))
        return (terms * scored(labels)).sum() / number_scored(labels)


class ProcessReward(Loss):
    """Cross entropy after the last iteration, and a term that teaches the process reward whether the answer can still
    be reached. The judgements are those of a task with traces, which must hold wrong steps.

    Args:
        weight: w, of the term; 0.5 where it is not named. With alone there is nothing that it would weigh against.
        by_row: every row weighs alike, as a mean over its scored tokens and w times one over its judged positions;
            false: every scored token does, so that a long trace weighs as much as many direct answers, and the sum of
            all terms is divided by the number of scored tokens. Where some rows have none, take by_row.
        alone: train nothing but the process reward, on a mean over the judged positions; all else is frozen, for
            `mull train --from FOLDER`, whose process reward, if it has none, is a fresh one. A validation logs the loss
            of the judgements (`val/reward_loss`) beside that of tokens, which then stays as it was.
        afresh: with alone, a process reward that the folder has is not gone on with: a fresh one takes its place, which
            knows nothing of what the old one was taught.
    """

    def __init__(
        self, weight: float | None = None, by_row: bool = False, alone: bool = False, afresh: bool = False
    ) -> None:
        if weight is not None and alone:
            raise ValueError(f"weight {weight} weighs the term against cross entropies, which alone leaves out")
        weight = 0.5 if weight is None else weight
        if not 0 < weight < math.inf:
            raise ValueError(f"weight must be a number above 0, not {weight}")
        if by_row and alone:
            raise ValueError("by_row weighs cross entropies, which alone leaves out: choose one")
        if afresh and not alone:
            raise ValueError("afresh begins a process reward anew behind a finished model: set alone to true with it")
        self.weight, self.by_row, self.alone, self.afresh = weight, by_row, alone, afresh

    def trained(self, network: nn.Module) -> list[nn.Parameter] | None:
        found = network.value_parameters() if isinstance(network, LanguageModel) else []
        if not found:
            raise ValueError(
                f"ProcessReward trains the process reward, and this {type(network).__name__} has none: set "
                "model.network.init_args.config.value_head to true"
            )
        return found if self.alone else None

    def begins_anew(self, network: nn.Module) -> list[nn.Parameter]:
        return (self.trained(network) or []) if self.afresh else []

    @property
    def asks_value(self) -> bool:
        return True

    @property
    def asks_tokens(self) -> bool:
        return not self.alone

    def __call__(self, output: ModelOutput, labels: Tensor) -> Tensor:  # noqa: ARG002
        raise ValueError("ProcessReward needs judgements of steps, which labels do not hold: take of_batch")

    def of_batch(self, output: ModelOutput, batch: dict[str, Tensor]) -> Tensor:
        judged = self.judged(batch)
        if output.value is None:
            raise ValueError("ProcessReward needs a network whose answers hold a value: read value=self.value(x) out")
        terms = judgement_losses(output.value, batch["values"])
        if self.alone:
            return terms.sum() / judged.sum().clamp(min=1)
        losses, told = token_losses(output.logits, batch["labels"]), scored(batch["labels"])
        if self.by_row:
            rows = losses.sum(dim=1) / told.sum(dim=1).clamp(min=1)
            rows = rows + self.weight * terms.sum(dim=1) / judged.sum(dim=1).clamp(min=1)
            return rows.sum() / self.counted(batch).sum().clamp(min=1)  # rows with nothing to learn do not count
        return (losses.sum() + self.weight * terms.sum()) / told.sum().clamp(min=1)

    def counted(self, batch: dict[str, Tensor]) -> Tensor:
        if self.by_row:
            return (scored(batch["labels"]) | self.judged(batch)).any(dim=1)
        return self.judged(batch) if self.alone else super().counted(batch)

    def judged(self, batch: dict[str, Tensor]) -> Tensor:
        """(B, T) bool: where a step ends that is judged."""
        if "values" not in batch:
            raise ValueError(
                "ProcessReward needs data whose steps are judged: a task with traces, as in styles: {search: 1}"
            )
        return batch["values"] >= 0


def judgement_losses(value: Tensor, values: Tensor) -> Tensor:
    """Binary cross entropy (B, T) between the process reward before its sigmoid and judgements from 0 to 1; 0 where
    nothing is judged (-1)."""
    said = wide(value)
    return F.binary_cross_entropy_with_logits(said, values.to(said.dtype).clamp(0, 1), reduction="none") * (values >= 0)


def check_labels(loss: Loss, data: object) -> None:
    """Raise a ValueError where a loss needs labels and the batches of the data have none, or learns nothing from
    judgements and the data has a policy write for these alone."""
    if loss.asks_tokens and not getattr(data, "scores_tokens", True):
        raise ValueError(
            f"{type(data).__name__} judges steps and has no tokens to learn, which {type(loss).__name__} of this kind "
            "needs: take the loss ProcessReward with alone: true, or leave rows of the task beside (share: 0.5)"
        )
    if getattr(data, "policy_judges", False) and not loss.asks_value:
        raise ValueError(
            f"{type(data).__name__} has a policy write texts to judge steps by, which {type(loss).__name__} does not "
            "learn: take the loss ProcessReward, or TaskData for the rows of the task alone"
        )


def one_count(iterations: Iterations | None, who: str) -> int:
    """R, for a loss that reads answers on the way; raises a ValueError where there is not one R for all rows."""
    if not isinstance(iterations, int):
        raise ValueError(
            f"{who} needs a model with a loop and one iteration count for the whole batch; "
            "use the Fixed, LogNormalPoisson or LinearCurriculum sampler, or Uniform without per_sequence"
        )
    return iterations


def count_at(share: float, iterations: int) -> int:
    """The count at a share of the iterations, rounded up."""
    return max(1, math.ceil(share * iterations - 1e-9))


def depth_of(output: ModelOutput) -> int:
    """R of an output whose rows all have one: of a model that routes tokens, all passes, taken or not."""
    return int(output.iterations.max()) if output.selected is None else output.selected.shape[-1] + 1


def log_probabilities(logits: Tensor) -> Tensor:
    """Of all tokens, (..., V), in fp32 or wider."""
    return F.log_softmax(wide(logits), dim=-1)


def by_iteration(output: ModelOutput, labels: Tensor, who: str) -> tuple[Tensor, Tensor]:
    """The exit gate's logits and the cross entropies of all iterations, (R, B, T) each."""
    readings = [output.readings[count] for count in sorted(output.readings)]
    if output.exit_logit is None or not readings:
        raise ValueError(f"{who} needs a model with exit_gate: true, and a sampler of iterations")
    exit_logits = torch.stack([r.exit_logit for r in readings if r.exit_logit is not None])
    return exit_logits, torch.stack([token_losses(r.logits, labels) for r in readings])


def exit_log_distribution(exit_logits: Tensor) -> Tensor:
    """log p(t) along the first axis, (R, ...) -> (R, ...): lambda_t is the chance to exit at t, given none before."""
    exit_logits = wide(exit_logits)  # first: rounded to bf16, stay and leave would not add up to 1
    stay = F.logsigmoid(-exit_logits)
    survived = torch.cat([torch.zeros_like(stay[:1]), stay[:-1].cumsum(dim=0)])
    leave = torch.cat([F.logsigmoid(exit_logits[:-1]), torch.zeros_like(stay[:1])])  # the last takes the rest
    return survived + leave


def number_scored(labels: Tensor) -> Tensor:
    """What a sum over the scored positions is divided by: their number, and 1 where there are none."""
    return scored(labels).sum().clamp(min=1)
