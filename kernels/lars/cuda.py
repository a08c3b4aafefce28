"""CUDA C++ (csrc/cuda/lars.cu)."""

import torch
from torch import Tensor

from sslfast.kernels.extension import cuda_unavailable, loaded
from sslfast.kernels.lars import Tensors
from sslfast.kernels.tensors import device_table, rows

DEVICE = "cuda"
PRIORITY = 15  # below Triton until a GPU run has shown it right and faster

available = cuda_unavailable


def step(tensors: Tensors, groups: Tensor, control: Tensor, trust: Tensor) -> None:
    """One step; see the package."""
    with torch.cuda.device(control.device):
        words = rows(tensors.columns, second=5, groups=tensors.groups)
        table = device_table(words, control)
        loaded().lars_step_cuda(
            table.rows.data_ptr(),
            table.chunks.data_ptr(),
            len(table.chunks),
            control.data_ptr(),
            groups.data_ptr(),
            trust.data_ptr(),
            torch.cuda.current_stream().cuda_stream,
        )
