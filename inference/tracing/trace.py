"""`mull.trace`: what a model would answer after every iteration, and how its state gets there.

    unroll (unrolled.py), changed on the way where asked (interventions.py);  read each state through the lenses
    (answers.py);  follow each exit rule in a run of its own (early_exit.py)

Everything is the model's own: answers are those of forward(read_at=...), exits those of `mull generate --exit`, router
choices those of forward. Answers are read one count at a time and reduced at once.

Shapes: B batch, T positions, D model width, V vocabulary, R iterations, C counts at which answers are read, K tokens
kept of an answer, N thinking layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor

from mull.inference.checks import check_known, routing_options
from mull.inference.early_exit import choose_exit, think_until
from mull.inference.exits import Exit
from mull.inference.measure.settling import SETTLED
from mull.inference.mode import evaluating
from mull.inference.prompts import PromptLike, as_prompts
from mull.inference.tracing.answers import LENSES, Answers, Lens, answers, logarithms
from mull.inference.tracing.interventions import Intervention
from mull.inference.tracing.unrolled import Unrolled, run_by_count, unroll
from mull.models import IteratedModel, LanguageModel
from mull.models.config import Capacity
from mull.models.labels import IGNORE
from mull.models.language_model import check_read_at
from mull.models.loop import Iterations, check_count
from mull.models.selection import Selection, check_capacity


@dataclass(frozen=True)
class Trace:
    """One run, by iteration and position; all tensors are on the model's device. At padding they mean nothing.

    Attributes:
        input_ids: (B, T) int64.
        mask: (B, T) bool, false at padding; None without any.
        labels: (B, T) int64, the token to predict at each position, -100 where there is none.
        counts: 1 .. R, the second axis of what is known after every iteration.
        read_at: ascending, the second axis of answers; R is its last.
        answers: by lens, `coda` (the model's own) and `logit`.
        logits: (B, T, V), the answer in the end, as forward gives it.
        residual: (B, R, T), |s_r - s_(r-1)| / |s_r|.
        cosine: (B, R, T), between a step of the state and the step before it; NaN where there is none.
        settled: (B, T) bool, whether the last residual is below 0.03 (measure/settling.py).
        exits: by rule as it was written, (B, T) int64: the iteration after which the position leaves, R where it never
            did, 0 at padding.
        selected: (B, T, N, R - 1), the routed passes that a position took, as `ModelOutput` has them; None without
            routers.
        router_logits: (B, T, N, R - 1), what the routers said of it; None without routers.
        states: (B, R, T, D); None unless they were to be kept.
        start: (B, T, D), the initial state; None where there is none, or states were not to be kept.
    """

    input_ids: Tensor
    mask: Tensor | None
    labels: Tensor
    counts: tuple[int, ...]
    read_at: tuple[int, ...]
    answers: Mapping[Lens, Answers]
    logits: Tensor
    residual: Tensor
    cosine: Tensor
    settled: Tensor
    exits: Mapping[str, Tensor]
    selected: Tensor | None = None
    router_logits: Tensor | None = None
    states: Tensor | None = None
    start: Tensor | None = None

    @property
    def iterations(self) -> int:
        """R."""
        return len(self.counts)


class RunOptions(TypedDict, total=False):
    """What may be said of a traced run beside how long it thinks; see the forward of the families.

    attention_mask: (B, T), 0 at padding; for ids.
    state, generator: the initial state, taken in the type of the model as by forward, or what draws it; of a core.
    capacity, selection: of routed passes.
    """

    attention_mask: Any
    state: Tensor | None
    generator: torch.Generator | None
    capacity: Capacity | None
    selection: Selection | None


@evaluating
@torch.no_grad()
def trace(
    model: LanguageModel,
    input_ids: PromptLike,
    iterations: int | None = None,
    *,
    labels: Any = None,
    read_at: Sequence[int] | None = None,
    lenses: Sequence[Lens] = ("coda",),
    top: int = 3,
    exits: str | Exit | Sequence[str | Exit] = (),
    patch: Intervention | Sequence[Intervention] = (),
    keep_states: bool = False,
    **options: Unpack[RunOptions],
) -> Trace:
    """Think, and look at every iteration of it.

    Args:
        model: any family with iterations; left in the mode it is in.
        input_ids: a text, a list of texts, or (B, T) ids, as `mull.generate` takes them.
        iterations: R; None is the config's.
        labels: (B, T), the token to predict at each position, negative where there is none; None is the next token.
        read_at: counts after which answers are read; None is all, () the last alone. A reading costs a coda and a head
            for each lens; the rest of the trace costs next to nothing beside the iterations.
        lenses: coda, logit or both; see answers.py.
        top: K, tokens kept of each answer.
        exits: a rule, latent:0.03 or an object of mull.inference.exits, or several. Each is followed in a run of its
            own, since positions that have left change what the others see.
        patch: changes of the state on the way (interventions.py), one or several, made in the order given.
        keep_states: whether the trace holds all states, R T D numbers a row.
        options: attention_mask, state, generator, capacity, selection; see `RunOptions`.

    Raises:
        ValueError: a bad value, a model without iterations, or what this family cannot do.
    """
    ids, mask = rows_of(model, input_ids, options.get("attention_mask"))
    count = depth(model, iterations, options.get("capacity"))
    wanted = counts_to_read(read_at, count)
    check_lenses(lenses, top)
    truth = as_labels(model, labels, ids, mask)
    changes = changes_of(patch)
    rules = rules_of(model, exits, changes)
    kept = tuple(range(1, count + 1)) if keep_states else wanted
    run = run_of(model, ids, count, kept, changes, mask, options)
    last = run.read(run.states[count])
    log_last = logarithms(last)
    return Trace(
        input_ids=ids,
        mask=mask,
        labels=truth,
        counts=tuple(range(1, count + 1)),
        read_at=wanted,
        answers={lens: seen(model, run, (last, log_last), wanted, lens, truth, top) for lens in lenses},
        logits=last,
        residual=run.residual,
        cosine=run.cosine,
        settled=run.residual[:, -1] < SETTLED,
        exits={word: think_until(model, ids, count, rule, mask, state=run.start).iterations for word, rule in rules},
        selected=run.selected,
        router_logits=run.router_logits,
        states=torch.stack([run.states[at] for at in kept], dim=1) if keep_states else None,
        start=run.start if keep_states else None,
    )


def rows_of(model: LanguageModel, input_ids: PromptLike, attention_mask: Any) -> tuple[Tensor, Tensor | None]:
    """Ids (B, T) and the mask beside them, where the model is. Raises ValueError for what is neither text nor ids."""
    ids, mask = as_prompts(model, input_ids, attention_mask)
    if ids.dim() != 2 or not ids.numel():
        raise ValueError(f"input_ids must have shape (batch, positions >= 1), not {tuple(ids.shape)}")
    if mask is not None and mask.shape != ids.shape:
        raise ValueError(f"attention_mask has shape {tuple(mask.shape)}, input_ids {tuple(ids.shape)}")
    check_known(model, "token id", ids)
    return ids.to(model.device), None if mask is None else mask.to(model.device).bool()


def seen(
    model: LanguageModel,
    run: Unrolled,
    last: tuple[Tensor, Tensor],
    wanted: Sequence[int],
    lens: Lens,
    labels: Tensor,
    top: int,
) -> Answers:
    """The answers of a run through a lens; `last` is what the model answers in the end, logits and logarithms."""
    final, log_last = last
    parts = []
    for at in wanted:
        if lens == "logit":
            logits = model.logits(run.states[at])
        else:
            logits = final if at == wanted[-1] else run.read(run.states[at])
        parts.append(answers(logits, log_last, labels, min(top, final.shape[-1])))
    return Answers.stacked(parts, dim=1)


def check_lenses(lenses: Sequence[Lens], top: int) -> None:
    """Raise a ValueError for lenses that there are not, none at all, or no token to keep."""
    if not lenses or any(lens not in LENSES for lens in lenses):
        raise ValueError(f"lenses must be of {', '.join(LENSES)}, one or more, not {tuple(lenses)}")
    check_count("top", top)


def rules_of(
    model: LanguageModel, exits: str | Exit | Sequence[str | Exit], changes: Sequence[Intervention]
) -> list[tuple[str, Exit]]:
    """Each rule beside how it was written; one may stand by itself. Raises ValueError for what is no rule."""
    if isinstance(exits, str | Exit):
        exits = (exits,)
    elif not isinstance(exits, Iterable):
        raise ValueError(f"exits must be a list of rules such as latent:0.03, not {exits!r}")
    found = [(rule if isinstance(rule, str) else repr(rule), choose_exit(model, rule)) for rule in exits]
    if found and changes:
        raise ValueError(
            "exit rules are followed in runs of their own, which no patch reaches: leave out exits or patch"
        )
    return [(word, rule) for word, rule in found if rule is not None]


def changes_of(patch: Intervention | Sequence[Intervention]) -> tuple[Intervention, ...]:
    """The changes; one may stand by itself. Raises ValueError for what is none."""
    if isinstance(patch, Intervention):
        return (patch,)
    changes = tuple(patch) if isinstance(patch, Iterable) else (patch,)
    wrong = [each for each in changes if not isinstance(each, Intervention)]
    if wrong:
        raise ValueError(f"patch must be a Patch, a Noise or a list of such, not {type(wrong[0]).__name__}")
    return changes


def depth(model: LanguageModel, iterations: int | None, capacity: Capacity | None) -> int:
    """R. Raises ValueError where nothing is iterated, and for a count for each row."""
    if iterations is None and isinstance(capacity, Sequence):  # one share for each routed pass says how many there are
        iterations = len(capacity) + 1
    count: Iterations | None = model.check_depth(iterations)
    if count is None:
        raise ValueError(f"a {type(model).__name__} has no loop, so there is nothing to trace: use forward")
    if isinstance(count, Tensor):
        raise ValueError("a trace has one iteration count for all rows: trace rows of other counts by themselves")
    return count


def counts_to_read(read_at: Sequence[int] | None, iterations: int) -> tuple[int, ...]:
    """Ascending, the last count among them."""
    if read_at is None:
        return tuple(range(1, iterations + 1))
    return tuple(sorted({*check_read_at(read_at, iterations), iterations}))


def as_labels(model: LanguageModel, labels: Any, ids: Tensor, mask: Tensor | None) -> Tensor:
    """The labels as (B, T) int64, the next token by default. Raises ValueError for other shapes, and unknown tokens."""
    if labels is None:
        truth = torch.full_like(ids, IGNORE)
        truth[:, :-1] = ids[:, 1:]
        if mask is not None:  # the last token of a row has no next one, nor has padding
            truth[:, :-1].masked_fill_(~(mask[:, :-1].bool() & mask[:, 1:].bool()), IGNORE)
        return truth
    try:
        truth = torch.as_tensor(labels, device=ids.device)
    except (TypeError, ValueError, RuntimeError):  # no numbers, or rows that do not fit
        kind = type(labels).__name__
        raise ValueError(f"labels must be integers of shape {tuple(ids.shape)}, not this {kind}") from None
    if truth.shape != ids.shape or truth.is_floating_point() or truth.dtype == torch.bool:
        raise ValueError(f"labels must be integers of shape {tuple(ids.shape)}, not {truth.dtype} {tuple(truth.shape)}")
    truth = truth.to(torch.int64)
    check_known(model, "label", truth[truth >= 0])
    return truth


def run_of(
    model: LanguageModel,
    ids: Tensor,
    iterations: int,
    kept: Sequence[int],
    changes: Sequence[Intervention],
    mask: Tensor | None,
    options: RunOptions,
) -> Unrolled:
    """The run of a model of either kind; refuses what that kind does not have."""
    unknown = sorted(options.keys() - RunOptions.__annotations__.keys())
    if unknown:
        raise TypeError(f"{unknown[0]!r} is no option; there are {', '.join(RunOptions.__annotations__)}")
    capacity, state, generator = options.get("capacity"), options.get("state"), options.get("generator")
    routing = routing_options(model, capacity=capacity, selection=options.get("selection"))
    if isinstance(model, IteratedModel):
        return unroll(model, ids, iterations, kept, changes, mask, state, generator)
    for name, value in (("patch", changes or None), ("state", state), ("generator", generator)):
        if value is not None:
            raise ValueError(f"{name} needs a model with a core that is iterated, not a {type(model).__name__}")
    if capacity is not None:
        check_capacity(capacity, iterations - 1)
    if mask is not None:
        routing["attention_mask"] = mask
    return run_by_count(model, ids, iterations, kept, **routing)
