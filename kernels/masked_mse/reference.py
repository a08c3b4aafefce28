"""The oracle: MAE's formula, and its gradients."""

import torch
from torch import Tensor

from sslfast.kernels.dtypes import accumulation_dtype

DEVICE = "any"
PRIORITY = 0


def _normal(target: Tensor, norm_target: bool, eps: float) -> tuple[Tensor, Tensor]:
    """The wanted rows y in the accumulation dtype, and 1 / sqrt(var + eps)."""
    t = target.to(accumulation_dtype(target.dtype))
    if not norm_target:
        return t, torch.ones_like(t[:, :1])
    centered = t - t.mean(1, keepdim=True)
    variance = centered.square().sum(1, keepdim=True) / (t.shape[1] - 1)
    scale = (variance + eps).rsqrt()
    return centered * scale, scale


def forward(
    prediction: Tensor, target: Tensor, mask: Tensor, norm_target: bool, eps: float
) -> Tensor:
    """Losses of the rows; see the package."""
    y, _ = _normal(target, norm_target, eps)
    return torch.where(mask, (prediction.to(y.dtype) - y).square().mean(1), 0)


def backward(
    gradient: Tensor,
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    norm_target: bool,
    eps: float,
    target_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of prediction and target; see the package."""
    dim, hidden = prediction.shape[1], mask[:, None]
    y, scale = _normal(target, norm_target, eps)
    d = torch.where(hidden, 2 * gradient[:, None] * (prediction.to(y.dtype) - y) / dim, 0)
    if not target_gradient:
        return d.to(prediction.dtype), target.new_empty(0)
    dt = -d
    if norm_target:
        along = y * (d * y).sum(1, keepdim=True) / (dim - 1)
        dt = torch.where(hidden, -scale * (d - d.mean(1, keepdim=True) - along), 0)
    return d.to(prediction.dtype), dt.to(target.dtype)
