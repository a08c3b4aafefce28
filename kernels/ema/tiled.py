"""PyTorch only: its own foreach kernels, where they take the dtypes."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sslfast.kernels.ema import reference
from sslfast.kernels.tensors import Rows

DEVICE = "any"
PRIORITY = 10
LARGEST = torch.finfo(torch.float32).max


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
    pairs = [(t, s) for t, s in zip(teacher, student, strict=True) if t.numel()]
    if m == 1 or not pairs:
        return
    largest = [x.item() for x in torch._foreach_norm([x for p in pairs for x in p], math.inf)]
    same = []
    for (t, s), a, b in zip(pairs, largest[::2], largest[1::2], strict=True):
        if m == 0 or not a + b < LARGEST:  # torch's lerp: infinity - infinity is NaN
            reference.update([t], [s], momentum)
        elif t.dtype == s.dtype:
            same.append((t, s))
        # A copy of one tensor at a time.
        elif t.dtype == torch.float64 or (t.dtype == torch.float32 and s.dtype != torch.float64):
            t.lerp_(s.to(t.dtype), 1 - m)
        else:
            reference.update([t], [s], momentum)
    if same:
        torch._foreach_lerp_([t for t, _ in same], [s for _, s in same], 1 - m)
