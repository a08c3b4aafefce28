"""The oracle: all patches are cut and embedded, then the visible ones are taken."""

import torch
from torch import Tensor

from sslfast.kernels.gather_patches import reference
from sslfast.kernels.patchify_visible import Patch, grid

DEVICE = "any"
PRIORITY = 0


def cut(images: Tensor, patch: Patch, ids: Tensor) -> Tensor:
    """Visible patches as rows; see the package."""
    (frames, rows, columns), (t, h, w) = grid(images, patch), patch
    patches = images.reshape(*images.shape[:2], frames, t, rows, h, columns, w)
    patches = patches.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3)
    return reference.gather(patches, ids)


def forward(
    images: Tensor, weight: Tensor, bias: Tensor | None, positions: Tensor | None, ids: Tensor
) -> Tensor:
    """Embeddings of the visible patches; see the package."""
    t, h, w = weight.shape[2:]
    length = grid(images, (t, h, w))
    every = torch.arange(length[0] * length[1] * length[2], device=ids.device)
    rows = cut(images, (t, h, w), every.expand(len(ids), -1))
    embedded = torch.nn.functional.linear(rows, weight.flatten(1), bias)
    return reference.gather(embedded if positions is None else embedded + positions, ids)
