"""The oracle: the definition, written down with all similarities in memory."""

import torch
from torch import Tensor

from sslfast.kernels.dtypes import accumulation_dtype

DEVICE = "any"
PRIORITY = 0


def nearest(x: Tensor, y: Tensor, own: Tensor) -> Tensor:
    """The most similar columns; see the package."""
    dtype = accumulation_dtype(x.dtype)
    return (x.to(dtype) @ y.to(dtype).T).scatter(1, own[:, None], -torch.inf).argmax(1)
