"""CUDA C++ (csrc/cuda/gather_patches.cu): vectorised copies of rows; torch for the gradient."""

import torch
from torch import Tensor

from sslfast.kernels.extension import cuda_unavailable, loaded
from sslfast.kernels.gather_patches import tiled

DEVICE = "cuda"
PRIORITY = 5  # below Triton until a GPU run has shown it right and faster

available = cuda_unavailable


def gather(tokens: Tensor, ids: Tensor) -> Tensor:
    """Rows at the indices; see the package."""
    tokens, ids = tokens.contiguous(), ids.contiguous()
    rows = tokens.new_empty(*ids.shape, tokens.shape[2])
    with torch.cuda.device(tokens.device):
        loaded().gather_rows_cuda(
            tokens.data_ptr(),
            ids.data_ptr(),
            len(ids),
            tokens.shape[1],
            ids.shape[1],
            tokens.shape[2] * tokens.element_size(),
            rows.data_ptr(),
            torch.cuda.current_stream().cuda_stream,
        )
    return rows


scatter = tiled.scatter
