"""C++ on the CPU (csrc/cpu/philox.cpp)."""

import torch
from torch import Tensor

from sslfast.kernels.extension import cpu_unavailable, loaded

DEVICE = "cpu"
PRIORITY = 30

available = cpu_unavailable


def random_bits(sample_ids: Tensor, step: Tensor, seed: int, stream: int, count: int) -> Tensor:
    """Random words; see the package."""
    sample_ids = sample_ids.contiguous()
    out = torch.empty(len(sample_ids), count, dtype=torch.int64)
    loaded().philox_random_bits_cpu(
        sample_ids.data_ptr(),
        len(sample_ids),
        int(step),
        seed % 2**64,
        stream,
        count,
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out
