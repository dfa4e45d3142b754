"""What can be asked of a generation. A refusal names value, limit and remedy, before anything is computed."""

from collections.abc import Sequence
from operator import index
from typing import Any

import torch
from torch import Tensor

from mull.models import LanguageModel
from mull.models.arguments import as_valid, outside
from mull.models.config import Capacity
from mull.models.loop import Iterations, check_iterations, deepest
from mull.models.selection import check_capacity


def routing_options(model: LanguageModel, **options: Any) -> dict[str, Any]:
    """Those that are given, for the call; a ValueError if the model routes nothing."""
    given = {name: value for name, value in options.items() if value is not None}
    if given and model.config.default_capacity is None:
        name, value = next(iter(given.items()))
        raise ValueError(f"this {type(model).__name__} has no routed passes: {name}={value} is refused, leave it out")
    return given


def check_depth(model: LanguageModel, iterations: Iterations | None, batch_size: int) -> Iterations | None:
    """The counts of a call on so many rows; None for the config's. Raises ValueError for counts that cannot be had."""
    if iterations is None:
        return None
    if model.config.default_iterations is None:
        raise ValueError(f"a {type(model).__name__} has no loop: iterations={iterations} is refused, leave it out")
    return check_iterations(iterations, batch_size)


def check_routing(model: LanguageModel, iterations: Iterations | None, capacity: Capacity | None) -> None:
    """Raise a ValueError for a capacity that the routed passes of this many iterations cannot have."""
    count = model.config.default_iterations if iterations is None else iterations
    if capacity is None or model.config.default_capacity is None or count is None:
        return
    check_capacity(capacity, deepest(count) - 1)


def check_prompt(model: LanguageModel, prompt_ids: Tensor, attention_mask: Tensor | None) -> None:
    """Raise a ValueError if the model cannot continue these prompts."""
    if prompt_ids.dim() != 2 or prompt_ids.is_floating_point() or prompt_ids.dtype == torch.bool:
        raise ValueError(
            f"prompt_ids must be integers of shape (batch, positions), not {prompt_ids.dtype} of shape "
            f"{tuple(prompt_ids.shape)}; a single prompt is a batch of one"
        )
    if prompt_ids.numel() == 0:
        raise ValueError("the prompt is empty; give at least one token")
    if attention_mask is not None:
        if attention_mask.shape != prompt_ids.shape:
            raise ValueError(
                f"attention_mask has shape {tuple(attention_mask.shape)}, prompt_ids {tuple(prompt_ids.shape)}; "
                "they must be equal"
            )
        empty = (~as_valid(attention_mask).any(dim=1)).nonzero().flatten().tolist()
        if empty:
            raise ValueError(f"row {empty[0]} of the prompt is empty: attention_mask hides all of it; leave it out")
    length, limit = max(real_lengths(prompt_ids, attention_mask)), model.config.max_length
    if length >= limit:
        raise ValueError(
            f"the prompt has {length} positions, and the model's max_length is {limit}, prompt and answer together; "
            f"shorten the prompt to {limit - 1} or less"
        )
    vocab_size = model.config.vocab_size
    if bool(((prompt_ids < 0) | (prompt_ids >= vocab_size)).any()):
        raise ValueError(outside(prompt_ids, vocab_size))


def real_lengths(prompt_ids: Tensor, attention_mask: Tensor | None) -> list[int]:
    """Tokens of each row (B, P), padding not counted."""
    if attention_mask is None:
        return [prompt_ids.shape[1]] * len(prompt_ids)
    return attention_mask.bool().sum(dim=1).tolist()


def check_stop_tokens(model: LanguageModel, stop_tokens: Sequence[int] | None) -> list[int]:
    """The stop tokens to use, the config's by default; a ValueError if one can never be met."""
    try:
        chosen = [index(token) for token in (model.config.stop_tokens if stop_tokens is None else stop_tokens)]
    except TypeError:
        raise ValueError(f"stop_tokens must be a list of token ids, not {stop_tokens!r}; text is for stop=") from None
    never = [token for token in chosen if not 0 <= token < model.config.vocab_size]
    if never:
        raise ValueError(
            f"stop token {never[0]} lies outside the vocabulary of {model.config.vocab_size} and would never be met"
        )
    return chosen
