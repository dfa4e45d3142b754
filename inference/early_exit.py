"""Early exit: each position is iterated until a rule says that it has thought enough, and costs nothing after that.

    s_p <- s_p after the first count at which rule(s_p) says leave, or after `iterations`

What is iterated shrinks to the positions that stay (`Context.narrow`). The positions that left answer the others with
their deepest keys (the `deepest` policy of the cache). A position's count depends on itself and on positions before it,
so under the policy `deepest` it is the same in a batch, with padding, in one prompt or token by token (but for rules
that read logits: exits.py). Under `shared` a prompt and its tokens one by one differ.

Shapes: B batch, T positions of this call, N positions that are still thinking, D model width, V vocabulary.
"""

from collections.abc import Generator

import torch
from einops import rearrange
from torch import Tensor

from mull.inference.exits import Exit, Memory, Thought, as_exit
from mull.inference.mode import evaluating
from mull.models import Cache, IteratedModel, LanguageModel, ModelOutput
from mull.models.arguments import as_ids, as_valid
from mull.models.loop import Iterations
from mull.models.output import relative_change
from mull.models.positions import Context


def choose_exit(model: LanguageModel, exit: str | Exit | None) -> Exit | None:
    """The rule, parsed if it is written out. Raises ValueError where the model cannot follow it."""
    rule = as_exit(exit)
    if rule is None:
        return None
    if not isinstance(model, IteratedModel):
        raise ValueError(f"exit {rule.name!r} needs a model with a core that is iterated, not a {type(model).__name__}")
    if rule.needs_gate and not model.can_halt:
        raise ValueError(
            f"exit {rule.name!r} needs a model with an exit gate: train with exit_gate: true, or use latent:0.03"
        )
    return rule


def think_until(
    model: LanguageModel,
    input_ids: Tensor,
    iterations: Iterations | None,
    exit: Exit,
    attention_mask: Tensor | None = None,
    cache: Cache | None = None,
    state: Tensor | None = None,
) -> ModelOutput:
    """Like `IteratedModel.forward`, but each position leaves when `exit` says so.

    `iterations` is the most that any position gets, None the config's count; a cache is of policy deepest or shared.
    Returns logits (B, T, V), state (B, T, D) and iterations (B, T), what each position used; padding uses 0.
    """
    return run_until(model, input_ids, iterations, exit, attention_mask, cache, state)[0]


@evaluating
@torch.no_grad()
def run_until(
    model: LanguageModel,
    input_ids: Tensor,
    iterations: Iterations | None,
    exit: Exit,
    attention_mask: Tensor | None = None,
    cache: Cache | None = None,
    state: Tensor | None = None,
) -> tuple[ModelOutput, Tensor]:
    """`think_until`, and how far the last iteration of each position moved its state, (B, T)."""
    input_ids = as_ids(input_ids, model.device)
    attention_mask = None if attention_mask is None else as_valid(attention_mask).to(model.device)
    thinking = step_by_step(model, input_ids, iterations, exit, attention_mask, cache, state)
    while True:
        try:
            next(thinking)
        except StopIteration as ended:
            return ended.value


def step_by_step(
    model: LanguageModel,
    input_ids: Tensor,
    iterations: Iterations | None,
    exit: Exit,
    attention_mask: Tensor | None = None,
    cache: Cache | None = None,
    state: Tensor | None = None,
) -> Generator[None, None, tuple[ModelOutput, Tensor]]:
    """`think_until` with a pause after every iteration, for who has other things to do as well; of a model in eval
    mode, without gradients. Returns the output, and how far the last iteration of each position moved its state,
    (B, T)."""
    assert isinstance(model, IteratedModel)
    limit = model.check_depth(iterations, len(input_ids))
    if isinstance(limit, Tensor):
        raise ValueError("an exit rule takes one limit of iterations for all rows, not one per row")
    if cache is None:
        if not model.config.causal:
            raise ValueError(
                f"exit {exit.name!r} lets positions go one by one, and here each looks at later ones (causal: false), "
                "which think on: leave the exit rule out"
            )
        # One set of keys suffices: positions that still think overwrite theirs in every iteration, and those that left
        # keep their last keys in it.
        longest = input_ids.shape[1] if attention_mask is None else int(attention_mask.sum(dim=1).max())
        cache = model.new_cache(len(input_ids), max(longest, 1), policy="shared")
    context = model.context(input_ids, attention_mask, cache, limit)
    injected = model.enter(input_ids, context)
    state = model.begin(injected, state)
    if attention_mask is None:
        thinking = torch.arange(input_ids.numel(), device=input_ids.device)
    else:
        thinking = attention_mask.to(input_ids.device).flatten().nonzero().flatten()
    if not len(thinking):
        raise ValueError("attention_mask hides every token; give at least one")
    state, used, looks, residual = yield from iterate_until_left(model, injected, state, context, thinking, limit, exit)
    reading = model.read(state, context)
    context.commit(None)  # each position is held at its own depth already
    output = ModelOutput(
        logits=reading.logits,
        exit_logit=reading.exit_logit,
        value=reading.value,
        state=state,
        iterations=used.view(input_ids.shape),
        looks=looks.view(input_ids.shape) if exit.reads_logits else None,
    )
    return output, residual.view(input_ids.shape)


def iterate_until_left(
    model: IteratedModel, injected: Tensor, state: Tensor, context: Context, thinking: Tensor, limit: int, exit: Exit
) -> Generator[None, None, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Iterate the positions `thinking`, (N,) ascending indices into B * T, until each has left or reached the limit.

    Returns the states (B, T, D), and of every position (B * T,) its iterations, 0 for those that never ran, how many
    answers the rule had read out of it, if it reads any, and how far its last iteration moved it.
    """
    cache = context.cache
    assert isinstance(cache, Cache)
    prepared = model.prepare(injected)
    final = rearrange(state, "b t d -> (b t) d").clone()
    used = torch.zeros(len(final), dtype=torch.int64, device=state.device)
    looks = torch.zeros_like(used)
    residual = torch.zeros(len(final), device=state.device, dtype=torch.promote_types(state.dtype, torch.float32))
    now, now_prepared, current = context, prepared, state  # nothing is gathered while all positions think
    if len(thinking) < len(final):
        now = context.narrow(thinking)
        now_prepared, current = now.gather(prepared), now.gather(state)
    memory: Memory = {}
    for count in range(1, limit + 1):
        previous, current = current, model.think(current, now_prepared, now, count - 1)
        yield
        if count == limit:
            leaves = torch.ones_like(thinking, dtype=torch.bool)
        elif exit.reads_logits and not exit.checks(count):
            continue
        else:
            thought = Thought(
                count=count,
                state=current.flatten(0, 1),
                previous=previous.flatten(0, 1),
                logits=lambda: model.read(current, now).logits.flatten(0, 1),  # noqa: B023  # asked at once, or never
                halt=lambda: model.halt(current).flatten(),  # noqa: B023
                memory=memory,
            )
            leaves = exit.leaves(thought)
            looks[thinking] += 1
            if not exit.checks(count) or not bool(leaves.any()):
                continue
        rows, columns = now.cells()
        cache.hold(rows[leaves], columns[leaves], count)
        by_position, left = current.flatten(0, 1), thinking[leaves]
        final[left], used[left] = by_position[leaves], count
        residual[left] = relative_change(by_position[leaves], previous.flatten(0, 1)[leaves])
        stays = ~leaves
        thinking = thinking[stays]
        if not len(thinking):
            break
        memory = {name: kept[stays] for name, kept in memory.items()}
        now = context.narrow(thinking)
        now_prepared, current = now.gather(prepared), by_position[stays][None]
    return final.view(state.shape), used, looks, residual
