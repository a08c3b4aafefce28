"""CUDA C++ (csrc/cuda/philox.cu)."""

import torch
from torch import Tensor

from sslfast.kernels.extension import cuda_unavailable, loaded

DEVICE = "cuda"
PRIORITY = 5  # below Triton until a GPU run has shown it right and faster

available = cuda_unavailable


def random_bits(sample_ids: Tensor, step: Tensor, seed: int, stream: int, count: int) -> Tensor:
    """Random words; see the package."""
    sample_ids = sample_ids.contiguous()
    out = torch.empty(len(sample_ids), count, dtype=torch.int64, device=sample_ids.device)
    with torch.cuda.device(sample_ids.device):
        loaded().philox_random_bits_cuda(
            sample_ids.data_ptr(),
            len(sample_ids),
            step.data_ptr(),
            seed % 2**64,
            stream,
            count,
            out.data_ptr(),
            torch.cuda.current_stream().cuda_stream,
        )
    return out
