"""C++ on the CPU (csrc/cpu/ema.cpp)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sslfast.kernels.ema import reference, tabled
from sslfast.kernels.extension import cpu_unavailable, loaded
from sslfast.kernels.tensors import Rows

DEVICE = "cpu"
PRIORITY = 30

available = cpu_unavailable


def update(
    teacher: Sequence[Tensor],
    student: Sequence[Tensor],
    momentum: Tensor,
    table: Rows | None = None,
) -> None:
    """Move the teacher; see the package."""
    same, other = tabled(teacher, student, table)
    threads = torch.get_num_threads()
    loaded().ema_update_cpu(same.address, len(same), momentum.item(), threads)
    reference.update(*other, momentum)
