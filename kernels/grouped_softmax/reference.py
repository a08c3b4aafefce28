"""The oracle: the definition, written down with the whole matrix in memory."""

import torch
from torch import Tensor

from sslfast.kernels.dtypes import accumulation_dtype, statistics_dtype
from sslfast.kernels.grouped_softmax import Groups, Side, sort_columns
from sslfast.kernels.similarity_softmax import Features

DEVICE = "any"
PRIORITY = 0
FEATURES = Features()


def _logits(
    rows: Tensor, columns: Tensor | None, scale: Tensor, groups: Groups
) -> tuple[Tensor, Tensor]:
    """Logits of the negatives and of the positives, -inf elsewhere."""
    dtype = accumulation_dtype(rows.dtype)
    y = rows if columns is None else columns
    products = rows.to(dtype) @ y.to(dtype).T
    positive, negative = sort_columns(products, groups, slice(0, len(rows)), slice(0, len(y)))
    logits = (scale * products).to(statistics_dtype(rows))
    return logits.masked_fill(~negative, -torch.inf), logits.masked_fill(~positive, -torch.inf)


def forward(
    rows: Tensor, columns: Tensor | None, scale: Tensor, groups: Groups, sides: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-sum-exps; see the package."""
    both = _logits(rows, columns, scale, groups)
    lse, positive = (t.logsumexp(1) for t in both)
    of_columns = [t.logsumexp(0) if sides else lse.new_empty(0) for t in both]
    return lse, positive, of_columns[0], of_columns[1]


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
    dtype = accumulation_dtype(rows.dtype)
    y = rows if columns is None else columns
    weight = torch.zeros(len(rows), len(y), dtype=statistics_dtype(rows), device=rows.device)
    pairs = (row, column), (row_positive, column_positive)
    for logits, (own, other) in zip(_logits(rows, columns, scale, groups), pairs, strict=True):
        weight += own[1][:, None] * (logits - _finite(own[0])[:, None]).exp()
        if other is not None:
            weight += other[1] * (logits - _finite(other[0])).exp()
    weight = weight.to(dtype)
    v = weight.T @ rows.to(dtype) if columns_gradient else weight.new_empty(0)
    return weight @ y.to(dtype), v


def _finite(lse: Tensor) -> Tensor:
    """0 for the -inf of an empty sum: its logits are -inf, their exp must be 0."""
    return lse.masked_fill(lse == -torch.inf, 0)
