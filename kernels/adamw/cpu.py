"""C++ on the CPU (csrc/cpu/optim.cpp)."""

import torch
from torch import Tensor

from sslfast.kernels.adamw import Tensors
from sslfast.kernels.extension import cpu_unavailable, loaded
from sslfast.kernels.tensors import rows

DEVICE = "cpu"
PRIORITY = 30

available = cpu_unavailable


def step(tensors: Tensors, groups: Tensor, control: Tensor) -> None:
    """One step; see the package."""
    table = rows(tensors.columns, second=5, groups=tensors.groups)
    loaded().adamw_step_cpu(
        table.address,
        len(tensors.params),
        control.data_ptr(),
        groups.data_ptr(),
        torch.get_num_threads(),
    )
