"""Labels: which positions are scored, and what a model loses at them.

Labels are aligned with positions, nothing is shifted: labels[t] is the token to predict at position t, or IGNORE.

Shapes: B batch, T positions, V vocabulary.
"""

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from mull.models.precision import wide

IGNORE = -100  # label of a position that is not scored; the default ignore_index of torch's cross entropy


def scored(labels: Tensor) -> Tensor:
    """(B, T) bool: the positions that count."""
    return labels != IGNORE


def depended_on(asked: Tensor, causal: bool) -> Tensor:
    """(B, T) bool: what the answers at the positions `asked`, (B, T) bool, depend on: where a model is causal those up
    to the last of them, else all."""
    return asked.flip(1).cumsum(dim=1).flip(1) > 0 if causal else torch.ones_like(asked)


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy in nats, (B, T) in fp32 or wider; 0 where nothing is scored."""
    by_position = wide(rearrange(logits, "b t v -> (b t) v"))
    flat = F.cross_entropy(by_position, labels.flatten(), ignore_index=IGNORE, reduction="none")
    return flat.view_as(labels)
