"""The oracle: the definition, written down with all scores in memory."""

from collections.abc import Callable

import torch
from torch import Tensor

from sslfast.kernels.dtypes import accumulation_dtype

DEVICE = "any"
PRIORITY = 0


def log_scaling(
    rows: Tensor, weight: Tensor, scale: Tensor, iterations: int, merged: Callable[[Tensor], Tensor]
) -> Tensor:
    """Sinkhorn's log v; see the package."""
    dtype = accumulation_dtype(rows.dtype)
    return of_scores(scale * (rows.to(dtype) @ weight.to(dtype).T), iterations, merged)


def of_scores(scores: Tensor, iterations: int, merged: Callable[[Tensor], Tensor]) -> Tensor:
    """Log v of scores [N, K] that are in memory, scaled."""
    log_u, log_v = scores.new_zeros(len(scores), 1), scores.new_zeros(scores.shape[1])
    for step in range(iterations):
        if step:
            log_u = -(scores + log_v).logsumexp(1, keepdim=True)
        nothing = torch.full_like(log_v, -torch.inf)
        log_v = -merged((scores + log_u).logsumexp(0) if len(scores) else nothing)
    return log_v
