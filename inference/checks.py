"""What can be asked of a generation. A refusal names value, limit and remedy, before anything is computed."""

from typing import Any

import torch
from torch import Tensor

from mull.models import LanguageModel
from mull.models.arguments import as_valid, outside


def routing_options(model: LanguageModel, **options: Any) -> dict[str, Any]:
    """Those that are given, for the call; a ValueError if the model routes nothing."""
    given = {name: value for name, value in options.items() if value is not None}
    if given and model.config.default_capacity is None:
        name, value = next(iter(given.items()))
        raise ValueError(f"this {type(model).__name__} has no routed passes: {name}={value} is refused, leave it out")
    return given


def check_prompt(model: LanguageModel, prompt_ids: Tensor, attention_mask: Tensor | None) -> list[int]:
    """Tokens of each row (B, P), padding not counted. Raises ValueError if the model cannot continue these prompts."""
    if prompt_ids.dim() != 2 or prompt_ids.is_floating_point() or prompt_ids.dtype == torch.bool:
        raise ValueError(
            f"prompt_ids must be integers of shape (batch, positions), not {prompt_ids.dtype} of shape "
            f"{tuple(prompt_ids.shape)}; a single prompt is a batch of one"
        )
    if prompt_ids.numel() == 0:
        raise ValueError("the prompt is empty; give at least one token")
    lengths = [prompt_ids.shape[1]] * len(prompt_ids)
    if attention_mask is not None:
        if attention_mask.shape != prompt_ids.shape:
            raise ValueError(
                f"attention_mask has shape {tuple(attention_mask.shape)}, prompt_ids {tuple(prompt_ids.shape)}; "
                "they must be equal"
            )
        lengths = as_valid(attention_mask).sum(dim=1).tolist()
        if 0 in lengths:
            row = lengths.index(0)
            raise ValueError(f"row {row} of the prompt is empty: attention_mask hides all of it; leave it out")
    limit = model.config.max_length
    if max(lengths) >= limit:
        raise ValueError(
            f"the prompt has {max(lengths)} positions, and the model's max_length is {limit}, prompt and answer "
            f"together; shorten the prompt to {limit - 1} or less"
        )
    check_known(model, "token id", prompt_ids)
    return lengths


def check_known(model: LanguageModel, what: str, ids: Tensor) -> None:
    """Raise a ValueError for ids that the model's vocabulary does not have; it says `what` they are."""
    wrong = outside(ids, model.config.vocab_size, what)
    if wrong:
        raise ValueError(wrong)
