"""What can be asked of a generation. A refusal names value, limit and remedy, before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mull.inference.exits import Exit
from mull.inference.speculate import Speculation
from mull.inference.wavefront import Wavefront
from mull.models import LanguageModel
from mull.models.cache import Policy
from mull.models.loop import Iterations
from mull.models.routing import Capacity, check_capacity


def choose_policy(
    policy: Policy | None,
    ring: int,
    exit: Exit | None,
    drafts: Speculation | None,
    front: Wavefront | None,
    warm_start: bool,
) -> Policy:
    """The cache policy to use; a ValueError for ways of decoding that do not go together."""
    if front is not None and (exit is not None or drafts is not None or warm_start):
        raise ValueError(
            "a wavefront settles positions by its own threshold: it goes with no exit rule, speculation or warm start"
        )
    if front is not None and (policy not in (None, "shared") or ring != 1):
        raise ValueError(
            f"a wavefront needs a cache of policy shared and ring 1, not {policy} and {ring}; leave them out"
        )
    chosen = policy or ("shared" if front is not None else "full" if exit is None else "deepest")
    if exit is not None and chosen == "full":
        raise ValueError("an exit rule needs a cache of policy deepest or shared, not full: keys of one depth")
    if drafts is not None and (exit is not None or warm_start or chosen != "full"):
        raise ValueError(
            "speculate verifies at full depth: it goes with no exit rule, warm start or other cache policy"
        )
    return chosen


def check_routing(model: LanguageModel, iterations: Iterations | None, capacity: Capacity | None) -> None:
    """Raise a ValueError for a capacity that the routed passes of this many iterations cannot have."""
    count = model.config.default_iterations if iterations is None else iterations
    if capacity is None or model.config.default_capacity is None or count is None:
        return
    check_capacity(capacity, (int(count.max()) if isinstance(count, Tensor) else count) - 1)


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
