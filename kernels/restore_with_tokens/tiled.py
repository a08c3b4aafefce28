"""Torch only, any device: one row of the token, never L - K of them."""

import torch
from torch import Tensor

from sslfast.kernels.dtypes import accumulation_dtype
from sslfast.kernels.gather_patches import tiled
from sslfast.kernels.restore_with_tokens import check_ids

DEVICE = "any"
PRIORITY = 10


def forward(
    visible: Tensor, token: Tensor, ids_restore: Tensor, positions: Tensor | None
) -> Tensor:
    """Decoder input; see the package."""
    check_ids(ids_restore)
    batch, keep, dim = visible.shape
    rows = torch.cat((visible, token.expand(batch, 1, dim)), 1)
    out = tiled.gather(rows, ids_restore.clamp(max=keep))  # row K of a sample is the token
    return out if positions is None else out.add_(positions)


def backward(gradient: Tensor, ids_restore: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Gradients of encoded rows and token; see the package."""
    dtype = accumulation_dtype(gradient.dtype)
    hidden = (ids_restore >= keep).to(dtype)
    d_token = torch.einsum("bl,bld->d", hidden, gradient.to(dtype))
    check_ids(ids_restore)
    rows = tiled.scatter(gradient, ids_restore.clamp(max=keep), keep + 1)
    return rows[:, :keep].clone(), d_token
