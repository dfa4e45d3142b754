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
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor

from mull.inference.adaptive import choose_exit, think_until
from mull.inference.checks import check_prompt, check_routing, check_stop_tokens, choose_policy
from mull.inference.exits import Exit
from mull.inference.lockstep import NewTokens, Round, Rounds, in_lockstep
from mull.inference.measure.evaluate import routing_options
from mull.inference.sampling import Draw, check_sampling, sample
from mull.inference.speculate import Speculation, check_speculation, parse_speculation
from mull.inference.speculate import speculate as speculate_rounds
from mull.inference.wavefront import Wavefront, check_wavefront, parse_wavefront
from mull.inference.wavefront import wavefront as wavefront_rounds
from mull.models import Cache, LanguageModel, ModelOutput, RecurrentDepthTransformer
from mull.models.cache import Policy
from mull.models.loop import Iterations, check_count
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


class Options(TypedDict, total=False):
    """What else may be said of a generation; see `generate`."""

    top_k: int | None
    top_p: float | None
    min_p: float | None
    attention_mask: Tensor | None
    stop_tokens: Sequence[int] | None
    speculate: str | Speculation | None
    wavefront: str | Wavefront | None
    warm_start: bool
    policy: Policy | None
    ring: int
    cache_dtype: torch.dtype | None
    capacity: Capacity | None


def generate(
    model: LanguageModel,
    prompt_ids: Tensor,
    iterations: Iterations | None = None,
    exit: str | Exit | None = None,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
    **options: Unpack[Options],
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
        wavefront: `4:32` thinks about up to 32 positions at once, 4 iterations a round, the later ones on guesses.
            Lossy: not the text of plain decoding. See mull.inference.wavefront for its options.
        warm_start: begin each new position from the state of the one before instead of the model's own start. Changes
            what is written, unless the loop comes to rest where it began or not.
        policy, ring: of the cache (models/cache.py); None is `full`, `deepest` with an exit rule, or `shared` with a
            wavefront.
        cache_dtype: of keys and values; None is the model's. bfloat16 under fp32 halves what long contexts cost, and
            may change what is written.
        capacity: share of the positions that a routed pass takes, one for all or one for each; None is the config's.

    Raises:
        ValueError: a bad value, an empty prompt, ids outside the vocabulary, a prompt that leaves no room.
    """
    positions = list(stream(model, prompt_ids, iterations, exit, max_new_tokens, temperature, generator, **options))
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
    wavefront: str | Wavefront | None = None,
    warm_start: bool = False,
    policy: Policy | None = None,
    ring: int = 1,
    cache_dtype: torch.dtype | None = None,
    capacity: Capacity | None = None,
) -> Iterator[NewTokens]:
    """Like `generate`, but yields the tokens of each new position as they come. Errors are raised by this call, before
    the first token, except those of the model itself."""
    check_sampling(temperature, generator, top_k, top_p, min_p)
    check_prompt(model, prompt_ids, attention_mask)
    check_count("max_new_tokens", max_new_tokens)
    rule, drafts, front = choose_exit(model, exit), parse_speculation(speculate), parse_wavefront(wavefront)
    if warm_start and not isinstance(model, RecurrentDepthTransformer):
        raise ValueError(f"warm_start needs a model with a core that is iterated, not a {type(model).__name__}")
    policy = choose_policy(policy, ring, rule, drafts, front, warm_start)
    stop = torch.tensor(check_stop_tokens(model, stop_tokens), dtype=torch.int64, device=model.device)
    mask = None if attention_mask is None else attention_mask.to(model.device)
    prompt = prompt_ids.to(model.device, torch.int64)
    batch_size, length = prompt.shape
    limit = min(max_new_tokens, model.config.max_length - length)
    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    check_routing(model, iterations, capacity)
    thinking = Thinking(iterations, rule, warm_start, routing_options(model, capacity=capacity))
    if drafts is None and front is None:
        cache = model.new_cache(batch_size, length + limit - 1, policy, ring, cache_dtype)  # the last is never read
        choose = partial(sample, generator=generator, **sampling)  # type: ignore[arg-type]
        return positions(model, prompt, mask, thinking, limit, cache, choose, stop)
    draw = Draw(generator, **sampling)  # type: ignore[arg-type]
    go_on: Callable[[Tensor, Cache], Rounds]
    if front is not None:
        deepest = check_wavefront(model, front, iterations, generator)
        cache = model.new_cache(batch_size, length + limit - 1, policy, dtype=cache_dtype)
        go_on = partial(wavefront_rounds, model, limit=deepest, how=front, room=limit - 1, choose=draw)
    elif drafts is not None:
        deepest = check_speculation(model, drafts, iterations)
        cache = model.new_cache(batch_size, length + limit, dtype=cache_dtype)
        go_on = partial(speculate_rounds, model, full=deepest, how=drafts, room=length + limit, choose=draw)
    rounds = after_prompt(
        model,
        prompt,
        mask,
        Thinking(deepest),
        cache,
        lambda logits: draw.token(draw.distribution(logits)),
        go_on,
    )
    return in_lockstep(rounds, limit, stop)


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


def think(
    model: LanguageModel, input_ids: Tensor, thinking: Thinking, cache: Cache, mask: Tensor | None, state: Tensor | None
) -> ModelOutput:
    """The model's answers to these tokens, behind the cache."""
    if thinking.exit is not None:
        return think_until(model, input_ids, thinking.iterations, thinking.exit, mask, cache, state)
    start = {} if state is None else {"state": state}
    return model(input_ids, thinking.iterations, attention_mask=mask, cache=cache, **start, **thinking.routing)


@torch.inference_mode()
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


@torch.inference_mode()
def decode_position(
    model: LanguageModel, tokens: Tensor, thinking: Thinking, cache: Cache, state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Read one token of each row (B,) behind the cache; logits (B, V), iterations (B,) and state (B, D) for the next.

    The state of the position before is where a warm start begins.
    """
    out = think(model, tokens[:, None], thinking, cache, None, state[:, None] if thinking.warm_start else None)
    return out.logits[:, -1], out.iterations[:, -1], out.state[:, -1]


def after_prompt(
    model: LanguageModel,
    prompt: Tensor,
    mask: Tensor | None,
    thinking: Thinking,
    cache: Cache,
    choose: Callable[[Tensor], Tensor],
    go_on: Callable[[Tensor, Cache], Rounds],
) -> Rounds:
    """The token after the prompt, which every row has at once, then the rounds of `go_on` from the tokens (B',) and
    cache of the rows that go on."""
    logits, used, _ = prefill(model, prompt, mask, thinking, cache)
    last = choose(logits)
    keep = yield Round(last[:, None], torch.ones_like(last), used[:, None])
    if keep is not None:
        cache, last = cache.fork(keep.tolist()), last[keep]
    yield from go_on(last, cache)
