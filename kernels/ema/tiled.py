"""PyTorch only: its own foreach kernels, where they take the dtypes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import Problem, reference

DEVICE = "any"
PRIORITY = 10


def supports(problem: Problem) -> str | None:
    """Anything."""
    return None


def update(teacher: Sequence[Tensor], student: Sequence[Tensor], momentum: Tensor) -> None:
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
        if t.dtype != s.dtype:  # a copy of one tensor at a time
            reference.update([t], [s], momentum)
