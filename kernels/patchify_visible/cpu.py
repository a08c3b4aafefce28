"""C++ on the CPU (csrc/cpu/patchify_visible.cpp) cuts, torch's matrix product embeds."""

import torch
from torch import Tensor

from sslfast.kernels.extension import cpu_unavailable, loaded
from sslfast.kernels.patchify_visible import Patch, embed, grid, offsets

DEVICE = "cpu"
PRIORITY = 30

available = cpu_unavailable


def cut(images: Tensor, patch: Patch, ids: Tensor) -> Tensor:
    """Visible patches as rows; see the package."""
    images, ids = images.contiguous(), ids.contiguous()
    size = images.shape[1] * patch[0] * patch[1] * patch[2]
    rows = images.new_empty(*ids.shape, size)
    inside = loaded().cut_patches_cpu(
        images.data_ptr(),
        ids.data_ptr(),
        *ids.shape,
        (*images.shape[1:], *patch),
        images.element_size(),
        rows.data_ptr(),
        torch.get_num_threads(),
    )
    if not inside:
        frames, height, width = grid(images, patch)
        raise IndexError(f"ids must lie in [0, {frames * height * width})")
    return rows


def forward(
    images: Tensor, weight: Tensor, bias: Tensor | None, positions: Tensor | None, ids: Tensor
) -> Tensor:
    """Embeddings of the visible patches; see the package."""
    t, h, w = weight.shape[2:]
    rows = cut(images, (t, h, w), ids)
    return embed(rows, weight, offsets(weight, bias, positions, ids))
