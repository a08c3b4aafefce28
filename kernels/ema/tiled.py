"""PyTorch only: its own foreach kernels, where they take the dtypes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .._tensors import Rows
from . import Problem, reference

DEVICE = "any"
PRIORITY = 10


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
    if momentum.device.type != "cpu":  # foreach kernels take one weight only from the host
        reference.update(teacher, student, momentum)
        return
    m = momentum.item()
    if m == 1 or not teacher:
        return
    pairs = list(zip(teacher, student, strict=True))
    same = [(t, s) for t, s in pairs if t.dtype == s.dtype]
    if same:
        torch._foreach_lerp_([t for t, _ in same], [s for _, s in same], 1 - m)
    for t, s in pairs:
        if t.dtype == s.dtype:
            continue
        # A copy of one tensor at a time.
        if t.dtype == torch.float64 or (t.dtype == torch.float32 and s.dtype != torch.float64):
            t.lerp_(s.to(t.dtype), 1 - m)
        else:
            reference.update([t], [s], momentum)
