"""Torch only, any device: one tile of the logits at a time, M x N never."""

import torch
from torch import Tensor

from sslfast.kernels.dtypes import accumulation_dtype, statistics_dtype
from sslfast.kernels.grouped_softmax import Groups, Side, sort_columns
from sslfast.kernels.similarity_softmax import Features, as_factors
from sslfast.kernels.similarity_softmax.tiled import add_to_lse, tiles

DEVICE = "any"
PRIORITY = 10
FEATURES = Features()


def forward(
    rows: Tensor, columns: Tensor | None, scale: Tensor, groups: Groups, sides: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-sum-exps; see the package."""
    symmetric, y = columns is None, rows if columns is None else columns
    dtype = accumulation_dtype(rows.dtype)
    empty = scale.new_full((len(rows),), -torch.inf, dtype=statistics_dtype(rows))
    of_rows = empty, empty.clone()
    empty = empty.new_full((len(y) if sides and not symmetric else 0,), -torch.inf)
    of_columns = empty, empty.clone()
    for i0, i1, j0, j1 in tiles(len(rows), len(y), symmetric, at_a_time=2):
        products = rows[i0:i1].to(dtype) @ y[j0:j1].to(dtype).T
        positive, negative = sort_columns(products, groups, slice(i0, i1), slice(j0, j1))
        logits = products.mul_(scale)
        for k, wanted in enumerate((negative, positive)):
            tile = logits.masked_fill(~wanted, -torch.inf)
            add_to_lse(of_rows[k][i0:i1], tile, 1)
            if symmetric and j0 != i0:
                add_to_lse(of_rows[k][j0:j1], tile, 0)
            if sides and not symmetric:
                add_to_lse(of_columns[k][j0:j1], tile, 0)
    if symmetric and sides:
        of_columns = of_rows[0].clone(), of_rows[1].clone()
    return *of_rows, *of_columns


def backward(
    rows: Tensor,
    columns: Tensor | None,
    scale: Tensor,
    groups: Groups,
    row: Side,
    row_positive: Side,
    column: Side | None,
    column_positive: Side | None,
    columns_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """Unscaled gradients; see the package."""
    symmetric, y = columns is None, rows if columns is None else columns
    dtype = accumulation_dtype(rows.dtype)
    of_rows = [as_factors(side, dtype) for side in (row, row_positive)]
    of_columns = [
        None if side is None else as_factors(side, dtype) for side in (column, column_positive)
    ]
    u = torch.zeros_like(rows, dtype=dtype)
    v = u if symmetric else torch.zeros_like(y, dtype=dtype)
    for i0, i1, j0, j1 in tiles(len(rows), len(y), symmetric, at_a_time=2):
        x, z = rows[i0:i1].to(dtype), y[j0:j1].to(dtype)
        products = x @ z.T
        positive, negative = sort_columns(products, groups, slice(i0, i1), slice(j0, j1))
        logits, total = products.mul_(scale), torch.zeros_like(products)
        for k, wanted in enumerate((negative, positive)):
            lse, g = (t[i0:i1, None] for t in of_rows[k])
            weight = (logits - lse).exp_().mul_(g)
            other = of_columns[k]
            if other is not None:
                lse, h = (t[j0:j1] for t in other)
                weight.add_((logits - lse).exp_().mul_(h))
            total += weight.masked_fill_(~wanted, 0)
        u[i0:i1].addmm_(total, z)
        if columns_gradient or (symmetric and j0 != i0):
            v[j0:j1].addmm_(total.T, x)
    return u, v if columns_gradient else v.new_empty(0)
