"""Writing on: one position after another, from a preallocated cache, with the iteration count as the knob.

    logits = prefill(prompt);   repeat: tokens = sample(logits); logits = decode_position(tokens)

`stream` is the loop, `generate` collects what it yields. Prompts of different lengths come padded on either side with
an attention mask; a row's answer does not depend on its padding or on the other rows (of a greedy run: draws share one
generator).

Shapes: B batch, P prompt positions with padding, N new positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mull.inference.adaptive import choose_exit, think_until
from mull.inference.continuous import PATIENCE, continuous, pays
from mull.inference.evaluate import routing_options
from mull.inference.exits import Exit
from mull.inference.lockstep import Lockstep, NewTokens
from mull.inference.sampling import Draw, check_sampling, sample
from mull.inference.speculate import Speculation, check_speculation, parse_speculation
from mull.inference.speculate import speculate as speculate_rounds
from mull.models import Cache, LanguageModel, ModelOutput, RecurrentDepthTransformer
from mull.models.cache import Policy
from mull.models.loop import Iterations
from mull.models.routing import Capacity


@dataclass(frozen=True)
class Generation:
    """Prompts and their answers.

    Attributes:
        tokens: (B, P + N) int64, the prompt as given (padding where it was), then the new tokens. A row that stopped
            before the others is filled up with the stop token it met.
        iterations: (B, N) int64, iterations spent on each new token; 0 where a row is only filled up, so
            `(iterations > 0).sum(dim=1)` is the length of each answer, its stop token included.
    """

    tokens: Tensor
    iterations: Tensor

    @property
    def new_tokens(self) -> Tensor:
        """(B, N), the answers without their prompts."""
        return self.tokens[:, -self.iterations.shape[1] :]


@dataclass(frozen=True)
class Thinking:
    """How a position is thought about: the count, and what else may depart from the plain loop."""

    iterations: Iterations | None
    exit: Exit | None = None
    warm_start: bool = False
    routing: Mapping[str, Any] = field(default_factory=dict)  # capacity, for models that route


def generate(
    model: LanguageModel,
    prompt_ids: Tensor,
    iterations: Iterations | None = None,
    exit: str | Exit | None = None,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
    *,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    attention_mask: Tensor | None = None,
    stop_tokens: Sequence[int] | None = None,
    speculate: str | Speculation | None = None,
    warm_start: bool = False,
    policy: Policy | None = None,
    ring: int = 1,
    capacity: Capacity | None = None,
) -> Generation:
    """Continue prompts until every row has met a stop token, or for `max_new_tokens`, or to the model's max_length.

    Args:
        model: any family; left in the mode it is in.
        prompt_ids: (B, P) integer token ids.
        iterations: how long to think at every position, one count or (B,) with one per row; None is the count of the
            config (a Transformer has no loop and takes nothing but None). With `exit`, the most any position gets.
        exit: a rule that ends thinking early, `latent:0.03` or an object of mull.inference.exits.
        max_new_tokens: N at most. P + N never exceeds the model's max_length: there the text ends.
        temperature, generator, top_k, top_p, min_p: how tokens are chosen; see `sampling.sample`.
        attention_mask: (B, P), 0 at padding (left or right); every row needs a token.
        stop_tokens: ids that end a row; None takes those of the model's config, () none.
        speculate: `4:16` drafts 16 tokens at 4 iterations and verifies them together: the same text, sooner.
        warm_start: begin each new position from the state of the one before instead of the model's own start. Changes
            what is written, unless the loop comes to rest where it began or not.
        policy, ring: of the cache (models/cache.py); None is `full`, or `deepest` with an exit rule.
        capacity: share of the positions that a routed pass takes, one for all or one for each; None is the config's.

    Raises:
        ValueError: a bad value, an empty prompt, ids outside the vocabulary, a prompt that leaves no room.
    """
    positions = list(
        stream(
            model,
            prompt_ids,
            iterations,
            exit,
            max_new_tokens,
            temperature,
            generator,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            attention_mask=attention_mask,
            stop_tokens=stop_tokens,
            speculate=speculate,
            warm_start=warm_start,
            policy=policy,
            ring=ring,
            capacity=capacity,
        )
    )
    new_tokens = torch.stack([position.tokens for position in positions], dim=1)
    used = torch.stack([position.iterations for position in positions], dim=1)
    return Generation(tokens=torch.cat([prompt_ids.to(new_tokens), new_tokens], dim=1), iterations=used)


def stream(
    model: LanguageModel,
    prompt_ids: Tensor,
    iterations: Iterations | None = None,
    exit: str | Exit | None = None,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
    *,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    attention_mask: Tensor | None = None,
    stop_tokens: Sequence[int] | None = None,
    speculate: str | Speculation | None = None,
    warm_start: bool = False,
    policy: Policy | None = None,
    ring: int = 1,
    capacity: Capacity | None = None,
) -> Iterator[NewTokens]:
    """Like `generate`, but yields the tokens of each new position as they come. Errors are raised by this call, before
    the first token, except those of the model itself."""
    check_sampling(temperature, generator, top_k, top_p, min_p)
    check_prompt(model, prompt_ids, attention_mask)
    if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be an integer of at least 1, not {max_new_tokens}")
    rule = choose_exit(model, exit)
    if warm_start and not isinstance(model, RecurrentDepthTransformer):
        raise ValueError(f"warm_start needs a model with a core that is iterated, not a {type(model).__name__}")
    stop = torch.tensor(check_stop_tokens(model, stop_tokens), dtype=torch.int64, device=model.device)
    mask = None if attention_mask is None else attention_mask.to(model.device)
    prompt = prompt_ids.to(model.device, torch.int64)
    batch_size, length = prompt.shape
    limit = min(max_new_tokens, model.config.max_length - length)
    policy = policy or ("full" if rule is None else "deepest")
    if rule is not None and policy == "full":
        raise ValueError("an exit rule needs a cache of policy deepest or shared, not full: keys of one depth")
    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    thinking = Thinking(iterations, rule, warm_start, routing_options(model, capacity=capacity))
    drafts = parse_speculation(speculate)
    if drafts is None:
        cache = model.new_cache(batch_size, length + limit - 1, policy, ring)  # the last token is never read
        choose = partial(sample, generator=generator, **sampling)  # type: ignore[arg-type]
        uneven = rule is not None and batch_size > 1 and pays(model)  # type: ignore[arg-type]  # choose_exit saw to it
        write = uneven_positions if uneven else positions
        return write(model, prompt, mask, thinking, limit, cache, choose, stop)
    if rule is not None or warm_start or policy != "full":
        raise ValueError(
            "speculate verifies at full depth: it goes with no exit rule, warm start or other cache policy"
        )
    full = check_speculation(model, drafts, iterations)
    cache = model.new_cache(batch_size, length + limit)
    return speculated(model, prompt, mask, full, drafts, limit, cache, Draw(generator, **sampling), stop)  # type: ignore[arg-type]


def positions(
    model: LanguageModel,
    prompt: Tensor,
    mask: Tensor | None,
    thinking: Thinking,
    limit: int,
    cache: Cache,
    choose: Callable[[Tensor], Tensor],
    stop: Tensor,
) -> Iterator[NewTokens]:
    """The loop: at most `limit` positions, and none after every row has met a token of `stop`. Rows that have met one
    leave the batch."""
    logits, used, state = prefill(model, prompt, mask, thinking, cache)
    tokens, everyones = prompt[:, -1].clone(), torch.zeros_like(prompt[:, -1])
    writing = torch.arange(len(prompt), device=prompt.device)
    for count in range(1, limit + 1):
        tokens[writing], everyones[writing] = choose(logits), used
        yield NewTokens(tokens.clone(), everyones.clone())
        goes_on = ~torch.isin(tokens[writing], stop)
        if count == limit or not bool(goes_on.any()):
            return
        if not bool(goes_on.all()):
            everyones[writing[~goes_on]] = 0
            writing, state = writing[goes_on], state[goes_on]
            cache = cache.fork(goes_on.nonzero().flatten().tolist())
            if isinstance(thinking.iterations, Tensor):
                thinking = replace(thinking, iterations=thinking.iterations[goes_on.to(thinking.iterations.device)])
        logits, used, state = decode_position(model, tokens[writing], thinking, cache, state)


def uneven_positions(
    model: LanguageModel,
    prompt: Tensor,
    mask: Tensor | None,
    thinking: Thinking,
    limit: int,
    cache: Cache,
    choose: Callable[[Tensor], Tensor],
    stop: Tensor,
    patience: float = PATIENCE,
) -> Iterator[NewTokens]:
    """Like `positions` under an exit rule, but rows go on at their own speed; see `continuous`."""
    assert isinstance(model, RecurrentDepthTransformer) and thinking.exit is not None
    logits, used, state = prefill(model, prompt, mask, thinking, cache)
    assert not isinstance(thinking.iterations, Tensor)  # refused before by think_until
    tokens, answers = choose(logits), Lockstep(len(prompt), limit, stop)
    answers.write(tokens[:, None].tolist(), used.tolist(), range(len(prompt)))
    yield from answers.ready()
    yield from continuous(
        model,
        tokens,
        cache,
        thinking.iterations,
        thinking.exit,
        choose,
        answers,
        state if thinking.warm_start else None,
        patience,
    )


def think(
    model: LanguageModel, input_ids: Tensor, thinking: Thinking, cache: Cache, mask: Tensor | None, state: Tensor | None
) -> ModelOutput:
    """The model's answers to these tokens, behind the cache."""
    if thinking.exit is not None:
        return think_until(model, input_ids, thinking.iterations, thinking.exit, mask, cache, state)
    start = {} if state is None else {"state": state}
    return model(input_ids, thinking.iterations, attention_mask=mask, cache=cache, **start, **thinking.routing)


@torch.no_grad()
def prefill(
    model: LanguageModel, prompt: Tensor, mask: Tensor | None, thinking: Thinking, cache: Cache
) -> tuple[Tensor, Tensor, Tensor]:
    """Read the prompt (B, P) into the cache; logits (B, V), iterations (B,) and state (B, D) at the last token."""
    out = think(model, prompt, thinking, cache, mask, None)
    last = torch.full_like(prompt[:, 0], prompt.shape[1] - 1)
    if mask is not None:
        last = torch.where(mask.bool(), torch.arange(prompt.shape[1], device=prompt.device), -1).amax(dim=1)
    rows = torch.arange(len(prompt), device=prompt.device)
    return out.logits[rows, last], out.iterations[rows, last], out.state[rows, last]


@torch.no_grad()
def decode_position(
    model: LanguageModel, tokens: Tensor, thinking: Thinking, cache: Cache, state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Read one token of each row (B,) behind the cache; logits (B, V), iterations (B,) and state (B, D) for the next.

    The state of the position before is where a warm start begins.
    """
    out = think(model, tokens[:, None], thinking, cache, None, state[:, None] if thinking.warm_start else None)
    return out.logits[:, -1], out.iterations[:, -1], out.state[:, -1]


def speculated(
    model: LanguageModel,
    prompt: Tensor,
    mask: Tensor | None,
    full: int,
    drafts: Speculation,
    limit: int,
    cache: Cache,
    choose: Draw,
    stop: Tensor,
) -> Iterator[NewTokens]:
    """Like `positions`, out of verified drafts: a position is yielded when every row that still writes has it."""
    assert isinstance(model, RecurrentDepthTransformer)
    logits, _, _ = prefill(model, prompt, mask, Thinking(full), cache)
    first = choose.token(choose.distribution(logits))
    answers = Lockstep(len(prompt), limit, stop)
    answers.write(first[:, None].tolist(), [full] * len(prompt), range(len(prompt)))
    yield from answers.ready()
    if not answers.writing:
        return
    start = cache if len(answers.writing) == len(prompt) else cache.fork(answers.writing)
    rounds = speculate_rounds(
        model,
        first[answers.writing],
        start,
        full,
        drafts,
        cache.max_length,
        choose.distribution,
        choose.token,
        choose.uniform,
    )
    keep = None
    while answers.writing:
        tokens, counts = rounds.send(keep)
        new = [row[:count] for row, count in zip(tokens.tolist(), counts.tolist(), strict=True)]
        goes_on = answers.write(new, [full] * len(new), answers.writing)
        keep = None if all(goes_on) else torch.tensor(goes_on, device=prompt.device).nonzero().flatten()
        yield from answers.ready()


def check_prompt(model: LanguageModel, prompt_ids: Tensor, attention_mask: Tensor | None) -> None:
    """Raise a ValueError if the model cannot continue these prompts."""
    if prompt_ids.dim() != 2 or prompt_ids.is_floating_point() or prompt_ids.dtype == torch.bool:
        raise ValueError(
            f"prompt_ids must be integers of shape (batch, positions), not {prompt_ids.dtype} of shape "
            f"{tuple(prompt_ids.shape)}; a single prompt is a batch of one"
        )
    if prompt_ids.numel() == 0:
        raise ValueError("the prompt is empty; give at least one token")
    length, limit, vocab_size = prompt_ids.shape[1], model.config.max_length, model.config.vocab_size
    if length >= limit:
        raise ValueError(
            f"the prompt has {length} positions, and the model's max_length is {limit}, prompt and answer together; "
            f"shorten the prompt to {limit - 1} or less"
        )
    if attention_mask is not None:
        if attention_mask.shape != prompt_ids.shape:
            raise ValueError(
                f"attention_mask has shape {tuple(attention_mask.shape)}, prompt_ids {tuple(prompt_ids.shape)}; "
                "they must be equal"
            )
        empty = (~attention_mask.bool().any(dim=1)).nonzero().flatten().tolist()
        if empty:
            raise ValueError(f"row {empty[0]} of the prompt is empty: attention_mask hides all of it; leave it out")
    outside = prompt_ids[(prompt_ids < 0) | (prompt_ids >= vocab_size)]
    if outside.numel():
        raise ValueError(
            f"token id {int(outside[0])} lies outside the vocabulary of {vocab_size} (0 .. {vocab_size - 1}); "
            "encode the prompt with the model's own tokenizer"
        )


def check_stop_tokens(model: LanguageModel, stop_tokens: Sequence[int] | None) -> list[int]:
    """The stop tokens to use, the config's by default; a ValueError if one can never be met."""
    chosen = list(model.config.stop_tokens if stop_tokens is None else stop_tokens)
    outside = [token for token in chosen if not 0 <= token < model.config.vocab_size]
    if outside:
        raise ValueError(
            f"stop token {outside[0]} lies outside the vocabulary of {model.config.vocab_size} and would never be met"
        )
    return chosen
