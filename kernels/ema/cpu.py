"""C++ on the CPU (csrc/cpu/ema.cpp)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .._extension import cpu_unavailable, loaded
from .._tensors import rows
from . import Problem, reference, split

DEVICE = "cpu"
PRIORITY = 30

available = cpu_unavailable


def supports(problem: Problem) -> str | None:
    """Anything."""
    return None


def update(teacher: Sequence[Tensor], student: Sequence[Tensor], momentum: Tensor) -> None:
    """Move the teacher; see the package."""
    same, other = split(teacher, student)
    table = rows(same, second=1)
    threads = torch.get_num_threads()
    address, _ = table.buffer_info()
    loaded().ema_update_cpu(address, len(same[0]), momentum.item(), threads)
    reference.update(*other, momentum)
