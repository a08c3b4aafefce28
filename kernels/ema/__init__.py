"""Exponential moving averages of many tensors at once: t <- momentum t + (1 - momentum) s.

Every backend has ``update(teacher, student, momentum)``: two lists of as many tensors, those of a
pair of one shape, floating-point, of any dtypes, all on one device; momentum a 0-d float64 tensor
there, which is not read on the host of a GPU. The teacher is written in place. Arithmetic is in
float32, or float64 where one of the pair is; t + (1 - m)(s - t), or s - m (s - t) for m <= 1/2, so
that both ends are exact. Momentum 1 leaves the teacher as it is, whatever the student holds.

Traffic: a pair is read once and its teacher written once, 12 bytes an element in float32, 10 for a
16-bit student of a float32 teacher.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress

import torch
from torch import Tensor

from .._tensors import same_layout


@dataclass(frozen=True)
class Problem:
    """What a backend is asked to do."""

    device: str
    types: frozenset[tuple[torch.dtype, torch.dtype]]  # of teacher and student


def problem(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Problem:
    """Describe the inputs of the op for the registry."""
    device = teacher[0].device.type if teacher else "cpu"
    types = zip([t.dtype for t in teacher], [s.dtype for s in student], strict=True)
    return Problem(device, frozenset(types))


def split(
    teacher: Sequence[Tensor], student: Sequence[Tensor]
) -> tuple[tuple[list[Tensor], list[Tensor]], tuple[list[Tensor], list[Tensor]]]:
    """(teachers, students) whose elements lie in the same order, then those where they do not."""
    if all(map(Tensor.is_contiguous, teacher)) and all(map(Tensor.is_contiguous, student)):
        return (list(teacher), list(student)), ([], [])
    fits = list(map(same_layout, teacher, student))
    same = list(compress(teacher, fits)), list(compress(student, fits))
    misfits = [not fit for fit in fits]
    return same, (list(compress(teacher, misfits)), list(compress(student, misfits)))
