"""Sinkhorn-Knopp over prototypes, in the log domain, without N x K scores: SwAV's codes.

Of scores s_ik = scale <rows_i, weight_k>, the codes of SwAV (arXiv:2006.09882, section 3.1) are
Q_ik = u_i exp(s_ik) v_k, whose columns have equal sums and whose rows sum to 1, after some
iterations of scaling columns and rows in turn. The rows come last, so that Q_i is the softmax of
s_i + log v: all there is to find is log v [K], and of that only differences matter.

``log_scaling(rows [N, D], weight [K, D], scale, iterations, merged) -> [K]``
    log v after the iterations, of which each is
        c_k = log sum_i exp(s_ik - r_i), with r_i = log sum_k exp(s_ik + log v_k), at first 0,
        log v = -merged(c).
    One pass over the scores, 2 N K D FLOP, or as much less as they are kept. N may be 0, whose c is
    -inf. ``merged`` makes the log-sum-exps of all ranks of those of this one.

Over ranks the sums over rows travel, K numbers. rows and weight: one floating dtype, contiguous;
scale 0-d, c and the result in the accumulation dtype: float32, or float64 for float64.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Problem:
    """What a backend is asked to do."""

    device: str
    dtype: torch.dtype
    rows: int
    prototypes: int
    dim: int


def problem(rows: Tensor, weight: Tensor) -> Problem:
    """Describe the inputs of an op for the registry."""
    return Problem(rows.device.type, rows.dtype, len(rows), *weight.shape)
