"""The oracle: the definition and its gradient, with the whole matrix in memory."""

import torch
from torch import Tensor

from sslfast.kernels.cross_correlation import Form
from sslfast.kernels.dtypes import accumulation_dtype

DEVICE = "any"
PRIORITY = 0


def moments(x: Tensor) -> Tensor:
    """Mean and biased variance of the columns; see the package."""
    wide = x.to(accumulation_dtype(x.dtype))
    return torch.stack((wide.mean(0), wide.var(0, correction=0)))


def _views_and_c(
    x: Tensor, y: Tensor | None, scaling: Tensor, form: Form
) -> tuple[Tensor, Tensor, Tensor]:
    """Xh, Yh and C."""
    xh, yh = (
        (view.to(scaling.dtype) - mean) * factor
        for view, (mean, factor) in zip((x, x if y is None else y), scaling[[0, -1]], strict=True)
    )
    return xh, yh, xh.T @ yh / form.divisor


def forward(
    x: Tensor, y: Tensor | None, scaling: Tensor, form: Form, kept: Tensor
) -> tuple[Tensor, Tensor]:
    """Diagonal, and sum of squares off it; see the package."""
    c = _views_and_c(x, y, scaling, form)[2]
    return c.diagonal().clone(), c.fill_diagonal_(0).square().sum()


def backward(
    d_diagonal: Tensor,
    d_off_diagonal: Tensor,
    x: Tensor,
    y: Tensor | None,
    scaling: Tensor,
    form: Form,
    diagonal: Tensor,
    kept: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradients of x and y; see the package."""
    xh, yh, c = _views_and_c(x, y, scaling, form)
    d_c = 2 * d_off_diagonal / form.divisor * c
    d_c.diagonal().copy_(d_diagonal / form.divisor)
    gradients = [yh @ d_c.T, xh @ d_c]
    if form.standardize:
        for g, own, (_, f) in zip(gradients, (xh, yh), scaling[[0, -1]], strict=True):
            g.sub_(g.mean(0) + own * (g * own).mean(0)).mul_(f)
    if y is None:
        return (gradients[0] + gradients[1]).to(x.dtype), x.new_empty(0)
    return gradients[0].to(x.dtype), gradients[1].to(x.dtype)
