"""The oracle: the definition, a tensor at a time."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sslfast.kernels.tensors import Rows

DEVICE = "any"
PRIORITY = 0


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
        start, end, weight = t.to(dtype), s.to(dtype), (1 - momentum).to(dtype)
        weighed = (1 - weight) * start + weight * end  # infinities: equal ones have no difference
        finite = (end - start).isfinite()
        moved = torch.where(finite, torch.lerp(start, end, weight), weighed).to(t.dtype)
        moved = torch.where(weight == 1, s.to(t.dtype), moved)
        t.copy_(torch.where(momentum == 1, t, moved))
