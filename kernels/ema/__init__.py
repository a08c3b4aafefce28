"""Exponential moving averages of many tensors at once: t <- momentum t + (1 - momentum) s.

Every backend has ``update(teacher, student, momentum, table=None)``: two lists of as many tensors,
those of a pair of one shape, floating-point, of any dtypes, all on one device; momentum a 0-d
float64 tensor there, which is not read on the host of a GPU; and the table of the pairs
(``kernels.tensors.plain_rows``) where it is known. The teacher is written in place. Arithmetic is
in float32, or float64 where one of the pair is; t + (1 - m)(s - t), or s - m (s - t) for m <= 1/2,
so that both ends are exact, and m t + (1 - m) s where s - t is not finite, so that infinities that
both hold stay. Momentum 1 leaves the teacher as it is, whatever the student holds; momentum 0
copies the student, bit for bit where the dtypes agree, whatever the teacher holds.

Traffic: a pair is read once and its teacher written once, 12 bytes an element in float32, 10 for a
16-bit student of a float32 teacher.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import compress

import torch
from torch import Tensor

from sslfast.kernels.tensors import Rows, dtypes_of, rows, same_layout

_DTYPE = operator.attrgetter("dtype")


@dataclass(frozen=True)
class Problem:
    """What a backend is asked to do."""

    device: str
    types: frozenset[tuple[torch.dtype, torch.dtype]]  # of teacher and student


def problem(
    teacher: Sequence[Tensor], student: Sequence[Tensor], table: Rows | None = None
) -> Problem:
    """Describe the inputs of the op for the registry."""
    device = teacher[0].device.type if teacher else "cpu"
    if table is not None:
        return Problem(device, _pairs(table.types))
    return Problem(device, frozenset(zip(map(_DTYPE, teacher), map(_DTYPE, student), strict=True)))


@cache
def _pairs(types: tuple[int, ...]) -> frozenset[tuple[torch.dtype, torch.dtype]]:
    return frozenset(map(dtypes_of, types))  # type: ignore[arg-type] # no student is None


Pairs = tuple[list[Tensor], list[Tensor]]


def tabled(
    teacher: Sequence[Tensor], student: Sequence[Tensor], table: Rows | None
) -> tuple[Rows, Pairs]:
    """The table of pairs whose elements lie in the same order, and the pairs where they do not."""
    if table is not None:
        return table, ([], [])
    fits = list(map(same_layout, teacher, student))
    misfits = [not fit for fit in fits]
    same = list(compress(teacher, fits)), list(compress(student, fits))
    other = list(compress(teacher, misfits)), list(compress(student, misfits))
    return rows(same, second=1), other
