"""Torch only, any device: a block of rows meets all prototypes. Extra memory: its scores, twice."""

import torch
from torch import Tensor

from sslfast.kernels.dtypes import accumulation_dtype

DEVICE = "any"
PRIORITY = 10

BLOCK_ELEMENTS = 1 << 23


def column_lse(rows: Tensor, weight: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
    """Log-sum-exps of the columns; see the package."""
    dtype = accumulation_dtype(rows.dtype)
    rows, weight = rows.to(dtype), weight.to(dtype)
    lowest = torch.finfo(dtype).min
    greatest = rows.new_full((len(weight),), lowest)
    total = rows.new_zeros(len(weight))
    step = max(BLOCK_ELEMENTS // len(weight), 1)
    for first in range(0, len(rows), step):
        scores = (rows[first : first + step] @ weight.T).mul_(scale)
        if shift is not None:
            scores -= (scores + shift).logsumexp(1, keepdim=True)
        new = torch.maximum(greatest, scores.amax(0))
        total.mul_((greatest - new).exp_()).add_(scores.sub_(new).exp_().sum(0))
        greatest = new
    return greatest + total.log()
