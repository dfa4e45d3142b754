"""What the arguments of a call may be: token ids of any integer type, and masks of ones and zeros.

Shapes: B batch, T positions.
"""

from typing import Any

import torch
from torch import Tensor


def as_ids(input_ids: Any, device: torch.device) -> Tensor:
    """Token ids as a tensor that an embedding takes. Raises ValueError for what is no ids."""
    wanted = "input_ids must be integers of shape (batch, positions)"
    if not isinstance(input_ids, Tensor):
        if isinstance(input_ids, str | bytes) or (
            isinstance(input_ids, list | tuple) and any(isinstance(row, str) for row in input_ids)
        ):
            raise ValueError(f"{wanted}, not text: encode it, or give it to mull.generate")
        try:
            input_ids = torch.as_tensor(input_ids, device=device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{wanted}; got {type(input_ids).__name__}: {str(error).splitlines()[0]}") from None
    if input_ids.dim() == 0:
        raise ValueError(f"{wanted}, not a single number")
    if input_ids.dtype in (torch.int64, torch.int32):
        return input_ids
    if input_ids.is_floating_point() or input_ids.is_complex() or input_ids.dtype == torch.bool:
        raise ValueError(f"{wanted}, not {input_ids.dtype} of shape {tuple(input_ids.shape)}")
    return input_ids.to(torch.int64)


def is_precise(dtype: Any) -> bool:
    """Whether something is a floating-point type of 16 bits or more: with smaller ones torch cannot calculate."""
    return isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype.itemsize > 1


def outside(ids: Tensor, vocab_size: int, what: str = "token id") -> str:
    """What is wrong with ids that are not all in the vocabulary, `what` they are; empty where nothing is."""
    wrong = ids[(ids < 0) | (ids >= vocab_size)]
    if not wrong.numel():
        return ""
    return (
        f"{what} {int(wrong[0])} lies outside the vocabulary of {vocab_size} (0 .. {vocab_size - 1}); "
        "encode with the model's own tokenizer"
    )


def as_valid(attention_mask: Any) -> Tensor:
    """A mask (B, T) of ones and zeros of any type, a tensor or lists, as a boolean one.

    Raises:
        ValueError: a mask with other values. Additive masks have the opposite meaning at 0.
    """
    try:
        attention_mask = torch.as_tensor(attention_mask)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"attention_mask must be ones and zeros, not {type(attention_mask).__name__}") from None
    if attention_mask.dtype != torch.bool:
        wrong = attention_mask[(attention_mask != 0) & (attention_mask != 1)]
        if wrong.numel():
            raise ValueError(
                f"attention_mask holds {wrong[0].item()}: it is 1 at tokens and 0 at padding, never additive; "
                "pass (additive == 0) instead"
            )
    return attention_mask.bool()
