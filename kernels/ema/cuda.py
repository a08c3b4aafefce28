"""CUDA C++ (csrc/cuda/ema.cu)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sslfast.kernels.ema import reference, tabled
from sslfast.kernels.extension import cuda_unavailable, loaded
from sslfast.kernels.tensors import Rows, device_table

DEVICE = "cuda"
PRIORITY = 15  # below Triton until a GPU run has shown it right and faster

available = cuda_unavailable


def update(
    teacher: Sequence[Tensor],
    student: Sequence[Tensor],
    momentum: Tensor,
    table: Rows | None = None,
) -> None:
    """Move the teacher; see the package."""
    same, other = tabled(teacher, student, table)
    if len(same):
        with torch.cuda.device(momentum.device):
            there = device_table(same, momentum)
            loaded().ema_update_cuda(
                there.rows.data_ptr(),
                there.chunks.data_ptr(),
                len(there.chunks),
                momentum.data_ptr(),
                torch.cuda.current_stream().cuda_stream,
            )
    reference.update(*other, momentum)
