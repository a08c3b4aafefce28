"""The oracle: the definition, written down with the whole matrix in memory."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sslfast.kernels.dtypes import accumulation_dtype
from sslfast.kernels.similarity_softmax import Pairing

DEVICE = "any"
PRIORITY = 0


def _logits(
    rows: Tensor, columns: Tensor, scale: Tensor, bias: Tensor, pairing: Pairing
) -> tuple[Tensor, Tensor]:
    """Logits t and signs z."""
    dtype = accumulation_dtype(rows.dtype)
    logits = scale * (rows.to(dtype) @ columns.to(dtype).T) + bias
    a = torch.arange(pairing.length, device=rows.device)
    i = pairing.row_base + a
    j = pairing.column_base + (a + pairing.shift) % max(pairing.length, 1)
    return logits, torch.full_like(logits, -1).index_put((i, j), logits.new_ones(()))


def forward(rows: Tensor, columns: Tensor, scale: Tensor, bias: Tensor, pairing: Pairing) -> Tensor:
    """Losses of the rows; see the package."""
    logits, z = _logits(rows, columns, scale, bias, pairing)
    return -F.logsigmoid(z * logits).sum(1)


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
    logits, z = _logits(rows, columns, scale, bias, pairing)
    g = -row_weight[:, None] * z * torch.sigmoid(-z * logits)
    v = g.T @ rows.to(g.dtype) if columns_gradient else g.new_empty(0)
    return -F.logsigmoid(z * logits).sum(1), g @ columns.to(g.dtype), v, g.sum(1)
