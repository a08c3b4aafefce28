"""Mean squared error of hidden patches, with MAE's normalisation of their targets in the same pass.

Every backend has two functions over rows: prediction and target [N, P] of one floating dtype, mask
bool [N], true = hidden. Sums are in the accumulation dtype (float32, or float64 for float64), which
losses and their upstream gradients [N] have too. Hidden rows are read once; others only need to
exist.

``forward(prediction, target, mask, norm_target, eps) -> loss [N]``
    loss_i = mean_p (x_ip - y_ip)^2 where hidden, else 0, with y = t, or with ``norm_target``
    y = (t - mean(t)) / sqrt(var(t) + eps), the variance of the row with P - 1 below.

``backward(gradient, prediction, target, mask, norm_target, eps, target_gradient)``
    -> (d_prediction [N, P], d_target [N, P] or [0]) in their dtype: with d = 2 g_i (x - y) / P,
    d_prediction = d and d_target = -d, or with ``norm_target`` and r = 1 / sqrt(var + eps)
    d_target = -r (d - mean(d) - y <d, y> / (P - 1)). Both are 0 where not hidden.
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
    dim: int


def problem(prediction: Tensor) -> Problem:
    """Describe the inputs for the registry."""
    return Problem(prediction.device.type, prediction.dtype, *prediction.shape)
