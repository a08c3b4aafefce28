"""The oracle, as in MAE's code: tokens repeated, concatenated and gathered."""

import torch
from torch import Tensor

from sslfast.kernels.dtypes import accumulation_dtype
from sslfast.kernels.restore_with_tokens import check_ids

DEVICE = "any"
PRIORITY = 0


def forward(
    visible: Tensor, token: Tensor, ids_restore: Tensor, positions: Tensor | None
) -> Tensor:
    """Decoder input; see the package."""
    check_ids(ids_restore)
    batch, keep, dim = visible.shape
    tokens = token.expand(batch, ids_restore.shape[1] - keep, dim)
    index = ids_restore[..., None].expand(*ids_restore.shape, dim)
    out = torch.cat((visible, tokens), 1).gather(1, index)
    return out if positions is None else out + positions


def backward(gradient: Tensor, ids_restore: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Gradients of encoded rows and token; see the package."""
    check_ids(ids_restore)
    index = ids_restore[..., None].expand_as(gradient)
    ordered = torch.zeros_like(gradient).scatter_add_(1, index, gradient)
    dtype = accumulation_dtype(gradient.dtype)
    return ordered[:, :keep].clone(), ordered[:, keep:].sum((0, 1), dtype=dtype)
