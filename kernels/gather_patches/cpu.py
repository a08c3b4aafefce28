"""C++ on the CPU (csrc/cpu/gather_patches.cpp): one copy a row, any dtype."""

import torch
from torch import Tensor

from sslfast.kernels.extension import cpu_unavailable, loaded
from sslfast.kernels.gather_patches import tiled

DEVICE = "cpu"
PRIORITY = 30

available = cpu_unavailable


def gather(tokens: Tensor, ids: Tensor) -> Tensor:
    """Rows at the indices; see the package."""
    tokens, ids = tokens.contiguous(), ids.contiguous()
    rows = tokens.new_empty(*ids.shape, tokens.shape[2])
    inside = loaded().gather_rows_cpu(
        tokens.data_ptr(),
        ids.data_ptr(),
        len(ids),
        tokens.shape[1],
        ids.shape[1],
        tokens.shape[2] * tokens.element_size(),
        rows.data_ptr(),
        torch.get_num_threads(),
    )
    if not inside:
        raise IndexError(f"ids must lie in [0, {tokens.shape[1]})")
    return rows


def scatter(rows: Tensor, ids: Tensor, length: int) -> Tensor:
    """The gradient of gather; see the package."""
    rows, ids = rows.contiguous(), ids.contiguous()
    tokens = rows.new_empty(len(rows), length, rows.shape[2])
    distinct = loaded().scatter_rows_cpu(
        rows.data_ptr(),
        ids.data_ptr(),
        len(ids),
        length,
        ids.shape[1],
        rows.shape[2] * rows.element_size(),
        tokens.data_ptr(),
        torch.get_num_threads(),
    )
    # Sums are rare, and torch has them for every dtype.
    return tokens if distinct else tiled.scatter(rows, ids, length)
