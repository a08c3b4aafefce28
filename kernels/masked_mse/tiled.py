"""Torch only, any device: a few megabytes of rows at a time."""

from collections.abc import Iterator

import torch
from torch import Tensor

from sslfast.kernels.dtypes import accumulation_dtype

DEVICE = "any"
PRIORITY = 10

TILE_ELEMENTS = 1 << 22


def _tiles(prediction: Tensor) -> Iterator[slice]:
    rows = max(TILE_ELEMENTS // max(prediction.shape[1], 1), 1)
    return (slice(first, first + rows) for first in range(0, len(prediction), rows))


def _difference(
    x: Tensor, t: Tensor, norm_target: bool, eps: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return x - y, y and the scale of the normalisation, in the accumulation dtype."""
    dtype = accumulation_dtype(x.dtype)
    x, y = x.to(dtype), t.to(dtype)
    if not norm_target:
        return x - y, y, None
    variance, mean = torch.var_mean(y, 1, keepdim=True)
    scale = (variance + eps).rsqrt()
    y = (y - mean) * scale
    return x - y, y, scale


def forward(
    prediction: Tensor, target: Tensor, mask: Tensor, norm_target: bool, eps: float
) -> Tensor:
    """Losses of the rows; see the package."""
    loss = prediction.new_empty(len(prediction), dtype=accumulation_dtype(prediction.dtype))
    for rows in _tiles(prediction):
        difference, _, _ = _difference(prediction[rows], target[rows], norm_target, eps)
        loss[rows] = difference.square_().mean(1)
    return loss.masked_fill_(~mask, 0)


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
    dim = prediction.shape[1]
    d_prediction = torch.empty_like(prediction)
    d_target = torch.empty_like(target) if target_gradient else target.new_empty(0)
    for rows in _tiles(prediction):
        d, y, scale = _difference(prediction[rows], target[rows], norm_target, eps)
        d.mul_(2 / dim * gradient[rows, None]).masked_fill_(~mask[rows, None], 0)
        d_prediction[rows] = d
        if not target_gradient:
            continue
        if scale is None:
            d_target[rows] = -d
            continue
        along = (d * y).sum(1, keepdim=True) / (dim - 1)
        d_target[rows] = (d - d.mean(1, keepdim=True) - y * along).mul_(-scale)
        d_target[rows].masked_fill_(~mask[rows, None], 0)
    return d_prediction, d_target
