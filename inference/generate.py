"""Writing on: one position after another, from a preallocated cache, with the iteration count as the knob.

    logits = prefill(prompt);   repeat: tokens = sample(logits); logits = decode_position(tokens)

`stream` is the loop, `generate` collects what it yields. Prompts of different lengths come padded on either side with
an attention mask; a row's answer does not depend on its padding or on the other rows (of a greedy run: draws share one
generator).

Shapes: B batch, P prompt positions with padding, N new positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mull.inference.evaluate import routing_options
from mull.inference.sampling import check_sampling, sample
from mull.models import Cache, LanguageModel, ModelOutput
from mull.models.loop import Iterations
from mull.models.routing import Capacity

Think = Callable[..., ModelOutput]  # a model, with what it is called with each time


class NewTokens(NamedTuple):
    """What one position of the answer got: `tokens` (B,) int64, and `iterations` (B,) spent on choosing them."""

    tokens: Tensor
    iterations: Tensor


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


def generate(
    model: LanguageModel,
    prompt_ids: Tensor,
    iterations: Iterations | None = None,
    exit: str | None = None,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
    *,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    attention_mask: Tensor | None = None,
    stop_tokens: Sequence[int] | None = None,
    capacity: Capacity | None = None,
) -> Generation:
    """Continue prompts until every row has met a stop token, or for `max_new_tokens`, or to the model's max_length.

    Args:
        model: any family; left in the mode it is in.
        prompt_ids: (B, P) integer token ids.
        iterations: how long to think at every position, one count or (B,) with one per row; None is the count of the
            config (a Transformer has no loop and takes nothing but None).
        exit: a rule that ends thinking early; there is none yet, so nothing but None is taken.
        max_new_tokens: N at most. P + N never exceeds the model's max_length: there the text ends.
        temperature, generator, top_k, top_p, min_p: how tokens are chosen; see `sampling.sample`.
        attention_mask: (B, P), 0 at padding (left or right); every row needs a token.
        stop_tokens: ids that end a row; None takes those of the model's config, () none.
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
    exit: str | None = None,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
    *,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    attention_mask: Tensor | None = None,
    stop_tokens: Sequence[int] | None = None,
    capacity: Capacity | None = None,
) -> Iterator[NewTokens]:
    """Like `generate`, but yields the tokens of each new position as they come. Errors are raised by this call, before
    the first token, except those of the model itself."""
    if exit is not None:
        raise ValueError(f"exit {exit!r} is not known: no exit rule exists yet, leave it out and set iterations")
    check_sampling(temperature, generator, top_k, top_p, min_p)
    check_prompt(model, prompt_ids, attention_mask)
    if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be an integer of at least 1, not {max_new_tokens}")
    stop = torch.tensor(check_stop_tokens(model, stop_tokens), dtype=torch.int64, device=model.device)
    choose = partial(sample, temperature=temperature, generator=generator, top_k=top_k, top_p=top_p, min_p=min_p)
    room = model.config.max_length - prompt_ids.shape[1]
    mask = None if attention_mask is None else attention_mask.to(model.device)
    prompt = prompt_ids.to(model.device, torch.int64)
    return positions(
        model,
        prompt,
        mask,
        iterations,
        min(max_new_tokens, room),
        choose,
        stop,
        routing_options(model, capacity=capacity),
    )


def positions(
    model: LanguageModel,
    prompt: Tensor,
    mask: Tensor | None,
    iterations: Iterations | None,
    limit: int,
    choose: Callable[[Tensor], Tensor],
    stop: Tensor,
    options: Mapping[str, Any],
) -> Iterator[NewTokens]:
    """The loop: at most `limit` positions, and none after every row has met a token of `stop`."""
    batch_size, length = prompt.shape
    cache = model.new_cache(batch_size, length + limit - 1)  # the last token is never read
    think = partial(model, **options)
    logits, used = prefill(think, prompt, mask, iterations, cache)
    tokens, stopped = prompt[:, -1], torch.zeros(batch_size, dtype=torch.bool, device=prompt.device)
    for count in range(1, limit + 1):
        tokens = torch.where(stopped, tokens, choose(logits))
        yield NewTokens(tokens, used.masked_fill(stopped, 0))
        stopped = stopped | torch.isin(tokens, stop)
        if count == limit or bool(stopped.all()):
            return
        logits, used = decode_position(think, tokens, iterations, cache)


@torch.no_grad()
def prefill(
    model: Think, prompt: Tensor, mask: Tensor | None, iterations: Iterations | None, cache: Cache
) -> tuple[Tensor, Tensor]:
    """Read the prompt (B, P) into the cache; logits (B, V) and iterations (B,) at the last token of each row."""
    out = model(prompt, iterations, attention_mask=mask, cache=cache)
    if mask is None:
        return out.logits[:, -1], out.iterations[:, -1]
    columns = torch.arange(prompt.shape[1], device=prompt.device)
    last = torch.where(mask.bool(), columns, -1).amax(dim=1)
    rows = torch.arange(len(prompt), device=prompt.device)
    return out.logits[rows, last], out.iterations[rows, last]


@torch.no_grad()
def decode_position(model: Think, tokens: Tensor, iterations: Iterations | None, cache: Cache) -> tuple[Tensor, Tensor]:
    """Read one token of each row (B,) behind the cache; logits (B, V) and iterations (B,) for the next."""
    out = model(tokens[:, None], iterations, cache=cache)
    return out.logits[:, -1], out.iterations[:, -1]


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
