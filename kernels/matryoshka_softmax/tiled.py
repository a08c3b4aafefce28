"""Torch only, any device: a tile of the logits at a time, backward one of every prefix."""

import torch
from torch import Tensor

from sslfast.kernels.dtypes import accumulation_dtype, statistics_dtype
from sslfast.kernels.matryoshka_softmax import Prefixes
from sslfast.kernels.similarity_softmax import Features, Pairing, as_factors
from sslfast.kernels.similarity_softmax.tiled import (
    add_to_lse,
    left_out,
    positives,
    segments,
    tiles,
)

DEVICE = "any"
PRIORITY = 10
FEATURES = Features()


def forward(
    rows: Tensor,
    columns: Tensor | None,
    scale: Tensor,
    prefixes: Prefixes,
    pairing: Pairing,
    column_lse: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exps and positive logits; see the package."""
    symmetric, y = columns is None, rows if columns is None else columns
    dtype = accumulation_dtype(rows.dtype)
    shape = len(prefixes.dims), len(rows)
    lse = scale.new_full(shape, -torch.inf, dtype=statistics_dtype(rows))
    lse_columns = lse.new_full((shape[0], len(y)) if column_lse else (0,), -torch.inf)
    positive = lse.clone()
    a, b = prefixes.rows.to(dtype) * scale, prefixes.columns.to(dtype)
    for i0, i1, j0, j1 in tiles(len(rows), len(y), symmetric):
        raw = scale.new_zeros(i1 - i0, j1 - j0)
        for p, f in enumerate(prefixes.features):
            raw.addmm_(rows[i0:i1, f].to(dtype), y[j0:j1, f].to(dtype).T)
            tile = (raw * a[p, i0:i1, None]).mul_(b[p, j0:j1])
            for first, last, values in segments(tile, i0, j0, positives(pairing)):
                positive[p, first:last] = values
            for _, _, values in segments(tile, i0, j0, left_out(pairing)):
                values.fill_(-torch.inf)
            add_to_lse(lse[p, i0:i1], tile, 1)
            if symmetric and j0 != i0:
                add_to_lse(lse[p, j0:j1], tile, 0)
            if column_lse and not symmetric:
                add_to_lse(lse_columns[p, j0:j1], tile, 0)
    if symmetric and pairing.shift:  # the other halves of the pairs are below the diagonal
        positive[:, pairing.shift :] = positive[:, : pairing.shift]
    if symmetric and column_lse:
        lse_columns = lse.clone()
    return lse, positive, lse_columns


def backward(
    rows: Tensor,
    columns: Tensor | None,
    scale: Tensor,
    prefixes: Prefixes,
    pairing: Pairing,
    row: tuple[Tensor, Tensor] | None,
    column: tuple[Tensor, Tensor] | None,
    positive: Tensor,
    columns_gradient: bool = False,
) -> tuple[Tensor, ...]:
    """Unscaled gradients and inner products; see the package."""
    symmetric, y = columns is None, rows if columns is None else columns
    dtype = accumulation_dtype(rows.dtype)
    row, column = (None if side is None else as_factors(side, dtype) for side in (row, column))
    u = torch.zeros_like(rows, dtype=dtype)
    inner = torch.zeros_like(prefixes.rows, dtype=dtype)
    v, column_inner = u, inner  # in the symmetric form
    if not symmetric:
        v = torch.zeros_like(y, dtype=dtype)
        column_inner = torch.zeros_like(prefixes.columns, dtype=dtype)
    a, b, positive = (t.to(dtype) for t in (prefixes.rows, prefixes.columns, positive))
    for i0, i1, j0, j1 in tiles(len(rows), len(y), symmetric, at_a_time=len(prefixes.dims)):
        both = columns_gradient or (symmetric and j0 != i0)
        x, z = rows[i0:i1].to(dtype), y[j0:j1].to(dtype)
        raw, weights = x.new_zeros(i1 - i0, j1 - j0), []
        for p, f in enumerate(prefixes.features):
            raw.addmm_(x[:, f], z[:, f].T)
            ends = a[p, i0:i1, None], b[p, j0:j1]
            logits = (raw * (scale * ends[0])).mul_(ends[1])
            weight = torch.zeros_like(logits)
            if row is not None:
                lse, g = (t[p, i0:i1, None] for t in row)
                weight.add_((logits - lse).exp_().mul_(g))
            if column is not None:
                lse, h = (t[p, j0:j1] for t in column)
                weight.add_(logits.sub_(lse).exp_().mul_(h))
            for _, _, values in segments(weight, i0, j0, left_out(pairing)):
                values.zero_()
            for first, last, values in segments(weight, i0, j0, positives(pairing)):
                values.copy_(positive[p, first:last])
            weight.mul_(ends[0]).mul_(ends[1])
            products = weight * raw
            inner[p, i0:i1] += products.sum(1)
            if both:
                column_inner[p, j0:j1] += products.sum(0)
            weights.append(weight)
        total = torch.zeros_like(raw)
        for f, weight in zip(reversed(prefixes.features), reversed(weights), strict=True):
            total += weight
            u[i0:i1, f].addmm_(total, z[:, f])
            if both:
                v[j0:j1, f].addmm_(total.T, x[:, f])
    if not columns_gradient:
        return u, u.new_empty(0), inner
    return u, v, inner, column_inner
