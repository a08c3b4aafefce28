"""CUDA C++ (csrc/cuda/ema.cu)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .._extension import cuda_unavailable, loaded
from .._tensors import device_table, rows
from . import Problem, reference, split

DEVICE = "cuda"
PRIORITY = 15  # below Triton until a GPU run has shown it right and faster

available = cuda_unavailable


def supports(problem: Problem) -> str | None:
    """Anything."""
    return None


def update(teacher: Sequence[Tensor], student: Sequence[Tensor], momentum: Tensor) -> None:
    """Move the teacher; see the package."""
    same, other = split(teacher, student)
    if same[0]:
        with torch.cuda.device(momentum.device):
            table = device_table(rows(same, second=1), momentum)
            loaded().ema_update_cuda(
                table.rows.data_ptr(),
                table.chunks.data_ptr(),
                len(table.chunks),
                momentum.data_ptr(),
                torch.cuda.current_stream().cuda_stream,
            )
    reference.update(*other, momentum)
