"""Torch only, any device: reads the visible patches alone, and embeds them in one product."""

import torch
from torch import Tensor

from sslfast.kernels.patchify_visible import Patch, embed, grid, offsets

DEVICE = "any"
PRIORITY = 10


def cut(images: Tensor, patch: Patch, ids: Tensor) -> Tensor:
    """Visible patches as rows; see the package."""
    (frames, rows, columns), (t, h, w) = grid(images, patch), patch
    if ids.device.type == "cpu" and bool(((ids < 0) | (ids >= frames * rows * columns)).any()):
        raise IndexError(f"ids must lie in [0, {frames * rows * columns})")
    patches = images.reshape(*images.shape[:2], frames, t, rows, h, columns, w)
    sample = torch.arange(len(ids), device=ids.device)[:, None]
    frame, row, column = ids // (rows * columns), ids // columns % rows, ids % columns
    return patches[sample, :, frame, :, row, :, column].flatten(2)


def forward(
    images: Tensor, weight: Tensor, bias: Tensor | None, positions: Tensor | None, ids: Tensor
) -> Tensor:
    """Embeddings of the visible patches; see the package."""
    t, h, w = weight.shape[2:]
    rows = cut(images, (t, h, w), ids)
    return embed(rows, weight, offsets(weight, bias, positions, ids))
