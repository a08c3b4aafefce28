"""The column most similar to each row, itself left out, without the N x M similarities.

``nearest(x [N, D], y [M, D], own int64 [N]) -> int64 [N]``
    The j that maximises <x_i, y_j> over j != own_i; the lowest of equal ones. own_i in [0, M), M at
    least 2. x and y: one floating dtype; products are accumulated in float32 at least.

The products are all there is to it, and the BLAS's: strips of them are searched as they come.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Problem:
    """What a backend is asked to do."""

    device: str
    dtype: torch.dtype


def problem(x: Tensor) -> Problem:
    """Describe the inputs of an op for the registry."""
    return Problem(x.device.type, x.dtype)
