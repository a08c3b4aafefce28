"""The oracle: the definition, written down with the whole matrix in memory."""

import torch
from torch import Tensor

from sslfast.kernels.dtypes import accumulation_dtype, statistics_dtype
from sslfast.kernels.similarity_softmax import Features, Pairing

DEVICE = "any"
PRIORITY = 0
FEATURES = Features()


def logits_of(
    rows: Tensor, columns: Tensor | None, scale: Tensor, pairing: Pairing
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits with -inf where no negative stands, the positive ones, and all columns."""
    dtype = accumulation_dtype(rows.dtype)
    y = rows.to(dtype) if columns is None else columns.to(dtype)
    logits = scale * (rows.to(dtype) @ y.T)
    a = torch.arange(pairing.length, device=rows.device)
    i = pairing.row_base + a
    j = pairing.column_base + (a + pairing.shift) % max(pairing.length, 1)
    positive = logits.new_full((len(rows),), -torch.inf).index_put((i,), logits[i, j])
    minus_infinity = torch.full_like(positive, -torch.inf)[i]
    logits = logits.index_put((i, j), minus_infinity)
    if pairing.leave_out_self:
        logits = logits.index_put((i, pairing.column_base + a), minus_infinity)
    return logits, positive, y


def _without_empty(lse: Tensor) -> Tensor:
    """0 for the -inf of a row without negatives: its logits are -inf, their exp must be 0."""
    return lse.masked_fill(lse == -torch.inf, 0)


def forward(
    rows: Tensor, columns: Tensor | None, scale: Tensor, pairing: Pairing, column_lse: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exps and positive logits; see the package."""
    logits, positive, _ = logits_of(rows, columns, scale, pairing)
    logits = logits.to(statistics_dtype(rows))
    lse_columns = logits.logsumexp(0) if column_lse else logits.new_empty(0)
    return logits.logsumexp(1), positive.to(logits.dtype), lse_columns


def backward(
    rows: Tensor,
    columns: Tensor | None,
    scale: Tensor,
    pairing: Pairing,
    row: tuple[Tensor, Tensor] | None,
    column: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """Unscaled gradient of the rows; see the package."""
    logits, _, y = logits_of(rows, columns, scale, pairing)
    return weights(logits.to(statistics_dtype(rows)), row, column).to(y.dtype) @ y


def weights(
    logits: Tensor, row: tuple[Tensor, Tensor] | None, column: tuple[Tensor, Tensor] | None
) -> Tensor:
    """G [M, N] of logits that are -inf where no negative stands."""
    weight = torch.zeros_like(logits)
    if row is not None:
        weight += row[1][:, None] * (logits - _without_empty(row[0])[:, None]).exp()
    if column is not None:
        weight += column[1] * (logits - _without_empty(column[0])).exp()
    return weight
