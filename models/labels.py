"""Labels: which positions are scored, and what a model loses at them.

Labels are aligned with positions, nothing is shifted: labels[t] is the token to predict at position t, or IGNORE.

Shapes: B batch, T positions, V vocabulary.
"""

from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from mull.models.precision import wide

IGNORE = -100  # label of a position that is not scored; the default ignore_index of torch's cross entropy


def scored(labels: Tensor) -> Tensor:
    """(B, T) bool: the positions that count."""
    return labels != IGNORE


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy in nats, (B, T) in fp32 or wider; 0 where nothing is scored."""
    by_position = wide(rearrange(logits, "b t v -> (b t) v"))
    flat = F.cross_entropy(by_position, labels.flatten(), ignore_index=IGNORE, reduction="none")
    return flat.view_as(labels)
