"""The oracle: the definition, a tensor at a time."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .._tensors import Rows
from . import Problem

DEVICE = "any"
PRIORITY = 0


def supports(problem: Problem) -> str | None:
    """Anything."""
    return None


def update(
    teacher: Sequence[Tensor],
    student: Sequence[Tensor],
    momentum: Tensor,
    table: Rows | None = None,
) -> None:
    """Move the teacher; see the package."""
    for t, s in zip(teacher, student, strict=True):
        double = torch.float64 in (t.dtype, s.dtype)
        dtype = torch.float64 if double else torch.float32
        moved = torch.lerp(t.to(dtype), s.to(dtype), (1 - momentum).to(dtype))
        t.copy_(torch.where(momentum == 1, t, moved.to(t.dtype)))
