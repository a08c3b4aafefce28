"""The oracle: the definition, one prefix after the other, with its whole matrix in memory."""

import torch
from torch import Tensor

from sslfast.kernels.dtypes import accumulation_dtype, statistics_dtype
from sslfast.kernels.matryoshka_softmax import Prefixes
from sslfast.kernels.similarity_softmax import Features, Pairing, reference
from sslfast.kernels.similarity_softmax.tiled import positives, segments

DEVICE = "any"
PRIORITY = 0
FEATURES = Features()


def _unit(x: Tensor, inverse: Tensor, prefix: int, prefixes: Prefixes) -> Tensor:
    """The rows of one prefix, divided by their norms."""
    dtype = accumulation_dtype(x.dtype)
    return x[:, : prefixes.dims[prefix]].to(dtype) * inverse[prefix, :, None].to(dtype)


def forward(
    rows: Tensor,
    columns: Tensor | None,
    scale: Tensor,
    prefixes: Prefixes,
    pairing: Pairing,
    column_lse: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exps and positive logits; see the package."""
    found = []
    for p in range(len(prefixes.dims)):
        x = _unit(rows, prefixes.rows, p, prefixes)
        y = None if columns is None else _unit(columns, prefixes.columns, p, prefixes)
        found.append(reference.forward(x, y, scale, pairing, column_lse))
    lse, positive, lse_columns = (torch.stack(parts) for parts in zip(*found, strict=True))
    return lse, positive, lse_columns if column_lse else lse.new_empty(0)


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
    dtype = accumulation_dtype(rows.dtype)
    u = torch.zeros_like(rows, dtype=dtype)
    v = torch.zeros_like(rows if columns is None else columns, dtype=dtype)
    inner, column_inner = [], []
    for p, dim in enumerate(prefixes.dims):
        x = _unit(rows, prefixes.rows, p, prefixes)
        y = None if columns is None else _unit(columns, prefixes.columns, p, prefixes)
        sides = [None if s is None else (s[0][p], s[1][p]) for s in (row, column)]
        logits, _, other = reference.logits_of(x, y, scale, pairing)
        weight = reference.weights(logits.to(statistics_dtype(rows)), *sides).to(dtype)
        for first, last, values in segments(weight, 0, 0, positives(pairing)):
            values.copy_(positive[p, first:last])
        cosine = x @ other.T
        u[:, :dim] += (weight @ other) * prefixes.rows[p, :, None].to(dtype)
        v[:, :dim] += (weight.T @ x) * prefixes.columns[p, :, None].to(dtype)
        inner.append((weight * cosine).sum(1))
        column_inner.append((weight * cosine).sum(0))
    if not columns_gradient:
        return u, u.new_empty(0), torch.stack(inner)
    return u, v, torch.stack(inner), torch.stack(column_inner)
