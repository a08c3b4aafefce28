"""CUDA C++ (csrc/cuda/adamw.cu)."""

import torch
from torch import Tensor

from .._extension import cuda_unavailable, loaded
from .._tensors import device_table, rows
from . import Problem, Tensors

DEVICE = "cuda"
PRIORITY = 15  # below Triton until a GPU run has shown it right and faster

available = cuda_unavailable


def supports(problem: Problem) -> str | None:
    """Anything."""
    return None


def step(tensors: Tensors, groups: Tensor, control: Tensor) -> None:
    """One step; see the package."""
    with torch.cuda.device(control.device):
        words = rows(tensors.columns, second=5, groups=tensors.groups)
        table = device_table(words, control)
        loaded().adamw_step_cuda(
            table.rows.data_ptr(),
            table.chunks.data_ptr(),
            len(table.chunks),
            control.data_ptr(),
            groups.data_ptr(),
            torch.cuda.current_stream().cuda_stream,
        )
