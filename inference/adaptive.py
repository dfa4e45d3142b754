"""Thinking until an exit rule says so: positions leave the running batch one by one, and cost nothing after that.

    s_p <- s_p after the first count at which rule(s_p) says leave, or after `iterations`

What is iterated shrinks to the positions that stay (`Frame.narrow`); those that left answer the others with their
deepest keys (the `deepest` policy of the cache). A position's count depends on itself and on positions before it, so it
is the same in a batch, with padding, in one prompt or token by token (except for rules that read logits: exits.py).

Shapes: B batch, T positions of this call, N positions that are still thinking, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor

from mull.inference.exits import Exit, Measured, Memory, Thought, parse
from mull.models import Cache, LanguageModel, ModelOutput, RecurrentDepthTransformer
from mull.models.layers import Frame
from mull.models.loop import Iterations, check_count, iterate


def choose_exit(model: LanguageModel, exit: str | Exit | None) -> Exit | None:
    """The rule, parsed if it is written out. Raises ValueError where the model cannot follow it."""
    rule = parse(exit) if isinstance(exit, str) else exit
    if rule is None:
        return None
    if not isinstance(model, RecurrentDepthTransformer):
        raise ValueError(f"exit {rule.name!r} needs a model with a core that is iterated, not a {type(model).__name__}")
    if rule.name == "gate" and model.exit_gate is None:
        raise ValueError("exit 'gate' needs a model with an exit gate: train with exit_gate: true, or use latent:0.03")
    return rule


def measure(
    model: LanguageModel, batches: Iterable[tuple[Tensor, Tensor]], iterations: int | None
) -> Callable[[Exit], Measured]:
    """What `exits.calibrate` asks: rule -> mean iterations of all positions, and accuracy of the scored ones.

    Args:
        batches: (input_ids, labels), each (B, T); labels below 0 are not scored.
        iterations: the most that any position gets; None is the config's count.
    """
    kept = list(batches)

    def run(exit: Exit) -> Measured:
        used = positions = right = scored = 0
        for input_ids, labels in kept:
            out = think_until(model, input_ids, iterations, exit)
            used, positions = used + int(out.iterations.sum()), positions + input_ids.numel()
            right += int((out.logits.argmax(-1) == labels)[labels >= 0].sum())
            scored += int((labels >= 0).sum())
        return Measured(iterations=used / positions, accuracy=right / scored)

    return run


def read(model: RecurrentDepthTransformer, state: Tensor, frame: Frame) -> Tensor:
    """The answers in states (B, T, D), by position: (B * T, V)."""
    return model.read(state, frame).logits.flatten(0, 1)


def look(
    model: RecurrentDepthTransformer,
    count: int,
    state: Tensor,
    previous: Tensor,
    logits: Callable[[], Tensor],
    memory: Memory,
) -> Thought:
    """What a rule gets to see of states (B, T, D), by position."""
    return Thought(
        count, state.flatten(0, 1), previous.flatten(0, 1), logits, lambda: model.halt(state).flatten(), memory
    )


@torch.no_grad()
def think_until(
    model: LanguageModel,
    input_ids: Tensor,
    iterations: Iterations | None,
    exit: Exit,
    attention_mask: Tensor | None = None,
    cache: Cache | None = None,
    state: Tensor | None = None,
) -> ModelOutput:
    """Like calling the model, but each position leaves when `exit` says so.

    Args:
        model: a RecurrentDepthTransformer.
        input_ids: (B, T) int64.
        iterations: the most that any position gets; None is the config's count.
        exit: the rule.
        attention_mask: (B, T), 0 at padding (left or right).
        cache: of policy deepest or shared; None makes one for this call.
        state: (B, T, D), the initial state; None is its mean.

    Returns:
        logits (B, T, V), state (B, T, D) and iterations (B, T), what each position used. Padding uses 0.
    """
    assert isinstance(model, RecurrentDepthTransformer)
    if isinstance(iterations, Tensor):
        raise ValueError("an exit rule takes one limit of iterations for all rows, not one per row")
    limit = check_count("iterations", model.config.mean_iterations if iterations is None else iterations)
    if cache is None:
        # one set of keys will do: of who still thinks the last are those of this iteration, of who left the deepest
        cache = model.new_cache(len(input_ids), input_ids.shape[1], policy="shared")
    frame = model.frame(input_ids, attention_mask, cache, limit)
    injected = model.enter(input_ids, frame)
    state = model.draw_state(injected, None) if state is None else state
    if attention_mask is None:
        running = torch.arange(input_ids.numel(), device=input_ids.device)
    else:
        running = attention_mask.flatten().nonzero().flatten()
    state, used = settle(model, injected, state, frame, running, limit, exit)
    reading = model.read(state, frame)
    frame.finish(None)  # each position is held at its own depth already
    return ModelOutput(
        logits=reading.logits, exit_logit=reading.exit_logit, state=state, iterations=used.view(input_ids.shape)
    )


def settle(
    model: RecurrentDepthTransformer,
    injected: Tensor,
    state: Tensor,
    frame: Frame,
    running: Tensor,
    limit: int,
    exit: Exit,
) -> tuple[Tensor, Tensor]:
    """Iterate the positions `running`, (N,) ascending indices into B * T, until each has left or reached the limit.

    Returns the states (B, T, D), and the iterations of every position (B * T,), 0 for those that never ran.
    """
    assert frame.cache is not None
    shape, width = state.shape, state.shape[-1]
    prepared = model.prepare(injected)
    flat_prepared, settled = prepared.reshape(-1, width), state.reshape(-1, width).clone()
    used = torch.zeros(len(settled), dtype=torch.int64, device=state.device)
    everything = len(running) == len(settled)  # then nothing need be picked out yet
    now = frame if everything else frame.narrow(running)
    current = state if everything else settled[running][None]
    think = model.thinker(prepared if everything else flat_prepared[running][None], now)
    memory: Memory = {}
    loop = iterate(think, current, limit)
    sent = None
    while len(running):
        previous = current
        count, current = loop.send(sent)
        sent = None
        if count == limit:
            leaves = torch.ones(len(running), dtype=torch.bool, device=running.device)
        elif exit.reads_logits and not exit.checks(count):
            continue
        else:
            leaves, _ = exit.leaves(look(model, count, current, previous, partial(read, model, current, now), memory))
            if not exit.checks(count) or not bool(leaves.any()):
                continue
        rows, columns = now.stored()
        frame.cache.hold(rows[leaves], columns[leaves], count)
        flat = current.reshape(-1, width)
        settled[running[leaves]], used[running[leaves]] = flat[leaves], count
        stays = ~leaves
        running, current = running[stays], flat[stays][None]
        if len(running):
            memory = {name: kept[stays] for name, kept in memory.items()}
            now = frame.narrow(running)
            sent = (model.thinker(flat_prepared[running][None], now), current)
    loop.close()
    return settled.view(shape), used
