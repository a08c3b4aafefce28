"""Torch only, any device: one row of the token, never L - K of them."""

import torch
from torch import Tensor

from ..gather_patches import tiled
from ..similarity_softmax import accumulation_dtype
from . import Problem

DEVICE = "any"
PRIORITY = 10


def supports(problem: Problem) -> str | None:
    """Anything."""
    return None


def forward(
    visible: Tensor, token: Tensor, ids_restore: Tensor, positions: Tensor | None
) -> Tensor:
    """Decoder input; see the package."""
    ids_keep = _ids_keep(ids_restore, visible.shape[1])
    out = token.repeat(*ids_restore.shape, 1)
    if positions is not None:
        out += positions
        visible = visible + positions[ids_keep]
    return out.scatter_(1, ids_keep[..., None].expand_as(visible), visible)


def _ids_keep(ids_restore: Tensor, keep: int) -> Tensor:
    places = torch.arange(ids_restore.shape[1], device=ids_restore.device)
    order = torch.empty_like(ids_restore)
    return order.scatter_(1, ids_restore, places.expand_as(order))[:, :keep]


def backward(gradient: Tensor, ids_restore: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Gradients of encoded rows and token; see the package."""
    dtype = accumulation_dtype(gradient.dtype)
    hidden = (ids_restore >= keep).to(dtype)
    d_token = torch.einsum("bl,bld->d", hidden, gradient.to(dtype))
    return tiled.gather(gradient, _ids_keep(ids_restore, keep)), d_token
