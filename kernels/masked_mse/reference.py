"""The oracle: MAE's formula, and torch's own gradients of it."""

import torch
from torch import Tensor

from ..similarity_softmax import accumulation_dtype
from . import Problem

DEVICE = "any"
PRIORITY = 0


def supports(problem: Problem) -> str | None:
    """Anything."""
    return None


def forward(
    prediction: Tensor, target: Tensor, mask: Tensor, normalise: bool, eps: float
) -> Tensor:
    """Losses of the rows; see the package."""
    dtype = accumulation_dtype(prediction.dtype)
    x, y = prediction.to(dtype), target.to(dtype)
    if normalise:
        y = (y - y.mean(1, keepdim=True)) / (y.var(1, keepdim=True) + eps).sqrt()
    return torch.where(mask, (x - y).square().mean(1), 0)


def backward(
    gradient: Tensor,
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    normalise: bool,
    eps: float,
    target_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of prediction and target; see the package."""
    x, t = prediction.detach().requires_grad_(), target.detach().requires_grad_()
    with torch.enable_grad():
        loss = forward(x, t, mask, normalise, eps)
    dx, dt = torch.autograd.grad(loss, (x, t), gradient)
    return dx, dt if target_gradient else dx.new_empty(0)
