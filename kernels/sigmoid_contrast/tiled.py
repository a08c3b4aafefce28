"""Torch only, any device: one tile of the logits at a time, M x N never. 6 M N D FLOP."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sslfast.kernels.dtypes import accumulation_dtype
from sslfast.kernels.similarity_softmax import Pairing
from sslfast.kernels.similarity_softmax.tiled import positives, segments, tiles

DEVICE = "any"
PRIORITY = 10


def forward(rows: Tensor, columns: Tensor, scale: Tensor, bias: Tensor, pairing: Pairing) -> Tensor:
    """Losses of the rows; see the package."""
    return _run(rows, columns, scale, bias, pairing, None, False)[0]


def gradients(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    bias: Tensor,
    pairing: Pairing,
    row_weight: Tensor,
    columns_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses and gradients; see the package."""
    return _run(rows, columns, scale, bias, pairing, row_weight, columns_gradient)


def _run(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    bias: Tensor,
    pairing: Pairing,
    row_weight: Tensor | None,
    columns_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = accumulation_dtype(rows.dtype)
    loss = scale.new_zeros(len(rows))
    u = torch.zeros_like(rows, dtype=dtype)
    v = torch.zeros_like(columns, dtype=dtype) if columns_gradient else scale.new_empty(0)
    d_bias = torch.zeros_like(loss)
    for i0, i1, j0, j1 in tiles(len(rows), len(columns), symmetric=False):
        x, y = rows[i0:i1].to(dtype), columns[j0:j1].to(dtype)
        # The logits of -z t: what a pair costs is their softplus, its gradient their sigmoid.
        cost = (x @ y.T).mul_(scale).add_(bias)
        for _, _, values in segments(cost, i0, j0, positives(pairing)):
            values.neg_()
        # Beyond 40, log1p(exp(-x)) is below the resolution of float64: softplus(x) is x.
        loss[i0:i1] += F.softplus(cost, threshold=40.0).sum(1)
        if row_weight is None:
            continue
        g = cost.sigmoid_().mul_(row_weight[i0:i1, None])
        for _, _, values in segments(g, i0, j0, positives(pairing)):
            values.neg_()
        u[i0:i1].addmm_(g, y)
        d_bias[i0:i1] += g.sum(1)
        if columns_gradient:
            v[j0:j1].addmm_(g.T, x)
    return loss, u, v, d_bias
