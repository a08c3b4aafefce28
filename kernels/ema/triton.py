"""Multi-tensor moving averages in Triton: one launch over the table of kernels/tensors.py.

A program takes one chunk of a tensor: 12 bytes of traffic an element in float32, 10 with a 16-bit
student. The momentum is read on the device.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from sslfast.kernels.ema import reference, tabled
from sslfast.kernels.gpu import DEVICE, unavailable
from sslfast.kernels.tensors import CHUNK, WORDS, Rows, device_table
from sslfast.kernels.triton_rows import BLOCK, OPTIONS, arithmetic, follow, pairs, pointer

__all__ = ["DEVICE", "PRIORITY", "available", "update"]

PRIORITY = 20

available = unavailable


@triton.jit
def ema_chunk(  # type: ignore[no-untyped-def]
    p_row,
    begin,
    momentum,
    T: tl.constexpr,
    S: tl.constexpr,
    ALIGNED: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One chunk of a row whose tensors have the types T and S."""
    weight = (1 - momentum).to(arithmetic(T, S).dtype)
    p_teacher, p_student = (
        pointer(p_row, 0, T, begin, ALIGNED),
        pointer(p_row, 1, S, begin, ALIGNED),
    )
    n = tl.minimum(tl.load(p_row + 6) - begin, CHUNK).to(tl.int32)
    whole = n // BLOCK * BLOCK  # without masks, so that accesses are of 16 bytes
    for first in tl.range(0, whole, BLOCK):
        i = first + tl.arange(0, BLOCK)
        follow(p_teacher, i, None, tl.load(p_student + i), weight)
    if whole < n:
        i = whole + tl.arange(0, BLOCK)
        follow(p_teacher, i, i < n, tl.load(p_student + i, mask=i < n), weight)


@triton.jit
def ema_kernel(  # type: ignore[no-untyped-def]
    p_rows,
    p_chunks,
    p_momentum,
    PAIRS: tl.constexpr,
    ALIGNED: tl.constexpr,
    WORDS: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program a chunk."""
    momentum = tl.load(p_momentum)
    if momentum != 1:
        chunk = tl.load(p_chunks + tl.program_id(0))
        p_row = p_rows + (chunk >> 32) * WORDS
        begin = (chunk & 0xFFFFFFFF) * CHUNK
        types = tl.load(p_row + 7) & 0xFFFFFFFF
        for k in tl.static_range(len(PAIRS)):
            if types == PAIRS[k][0]:
                ema_chunk(p_row, begin, momentum, PAIRS[k][1], PAIRS[k][2], ALIGNED, CHUNK, BLOCK)


def _constants(types: Sequence[int], aligned: bool) -> dict[str, object]:
    sizes = {"WORDS": WORDS, "CHUNK": CHUNK, "BLOCK": BLOCK}
    return {"PAIRS": pairs(types), "ALIGNED": aligned, **sizes}


def update(
    teacher: Sequence[Tensor],
    student: Sequence[Tensor],
    momentum: Tensor,
    table: Rows | None = None,
) -> None:
    """Move the teacher; see the package."""
    same, other = tabled(teacher, student, table)
    if len(same):
        with torch.cuda.device_of(momentum):
            there = device_table(same, momentum)
            if len(there.chunks):
                constants = _constants(there.types, there.aligned)
                ema_kernel[(len(there.chunks),)](
                    there.rows, there.chunks, momentum, **constants, **OPTIONS
                )
    reference.update(*other, momentum)
