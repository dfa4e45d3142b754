"""In how many bits a sum, a norm or a distribution is taken."""

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """The same numbers in fp32, or as they are where they have more bits: doubles stay doubles."""
    return x if x.dtype == torch.float64 else x.float()
