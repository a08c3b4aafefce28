"""The oracle: the definition, written down with all scores in memory."""

import torch
from torch import Tensor

from sslfast.kernels.dtypes import accumulation_dtype

DEVICE = "any"
PRIORITY = 0


def column_lse(rows: Tensor, weight: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
    """Log-sum-exps of the columns; see the package."""
    dtype = accumulation_dtype(rows.dtype)
    scores = scale * (rows.to(dtype) @ weight.to(dtype).T)
    if shift is not None:
        scores = scores - (scores + shift).logsumexp(1, keepdim=True)
    if not len(rows):
        return torch.full_like(scores[:1].sum(0), -torch.inf)
    return scores.logsumexp(0)
