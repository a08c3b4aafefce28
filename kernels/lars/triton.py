"""Multi-tensor LARS and SGD in Triton: one launch over kernels/tensors.py, with the teacher.

A program takes one chunk of a tensor: 20 bytes of traffic an element in float32, 28 with a teacher.
Hyperparameters and trust ratios are read on the device.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sslfast.kernels.gpu import DEVICE, unavailable
from sslfast.kernels.lars import FIELDS, Tensors
from sslfast.kernels.tensors import device_table, rows
from sslfast.kernels.triton_rows import OPTIONS, arithmetic, follow, pointer, put, step_constants

__all__ = ["DEVICE", "PRIORITY", "available", "step"]

PRIORITY = 20

available = unavailable


@triton.jit
def lars_turn(pointers, numbers, i, m, TEACHER: tl.constexpr):  # type: ignore[no-untyped-def]
    """Elements i, where the mask m allows; the numbers are those of csrc/include/sslfast/update.h.

    They have the type of the arithmetic. Elements below ``buffered`` have a buffer.
    """
    p_p, p_g, p_buffer, p_teacher = pointers
    gradient, decay, momentum, nesterov, lr, buffered, teacher_weight = numbers
    m_buffer = i < buffered
    if m is not None:
        m_buffer = m_buffer & m
    parameter = tl.load(p_p + i, mask=m).to(lr.dtype)
    direction = gradient * tl.load(p_g + i, mask=m).to(lr.dtype) + decay * parameter
    buffer = tl.load(p_buffer + i, mask=m_buffer, other=0).to(lr.dtype)
    buffer = momentum * buffer + direction
    put(p_buffer, i, m_buffer, buffer)
    parameter -= lr * tl.where(nesterov != 0, direction + momentum * buffer, buffer)
    stored = put(p_p, i, m, parameter)
    if TEACHER:
        follow(p_teacher, i, m, stored, teacher_weight)


@triton.jit
def lars_chunk(  # type: ignore[no-untyped-def]
    p_row,
    begin,
    p_group,
    trust,
    factor,
    teacher_momentum,
    P: tl.constexpr,
    E: tl.constexpr,
    TEACHER: tl.constexpr,
    ALIGNED: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One chunk of a row whose parameter has the type P and whose teacher, if any, E."""
    A: tl.constexpr = arithmetic(P, P).dtype
    p_p, p_g = pointer(p_row, 0, P, begin, ALIGNED), pointer(p_row, 1, P, begin, ALIGNED)
    p_buffer, p_teacher = pointer(p_row, 2, P, begin, ALIGNED), pointer(p_row, 5, E, begin, ALIGNED)
    pointers = p_p, p_g, p_buffer, p_teacher
    numbers = (
        (trust * factor).to(A),
        (trust * tl.load(p_group + 2)).to(A),
        tl.load(p_group + 1).to(A),
        tl.load(p_group + 3).to(A),
        tl.load(p_group).to(A),
        (tl.load(p_row + 2) != 0).to(tl.int32) * CHUNK,
        (1 - teacher_momentum).to(arithmetic(P, E).dtype),
    )
    n = tl.minimum(tl.load(p_row + 6) - begin, CHUNK).to(tl.int32)
    whole = n // BLOCK * BLOCK  # without masks, so that accesses are of 16 bytes
    for first in tl.range(0, whole, BLOCK):
        lars_turn(pointers, numbers, first + tl.arange(0, BLOCK), None, TEACHER)
    if whole < n:
        i = whole + tl.arange(0, BLOCK)
        lars_turn(pointers, numbers, i, i < n, TEACHER)


@triton.jit
def lars_kernel(  # type: ignore[no-untyped-def]
    p_rows,
    p_chunks,
    p_groups,
    p_control,
    p_trust,
    PAIRS: tl.constexpr,
    ALIGNED: tl.constexpr,
    FIELDS: tl.constexpr,
    WORDS: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program a chunk."""
    factor, teacher_momentum = tl.load(p_control), tl.load(p_control + 1)
    chunk = tl.load(p_chunks + tl.program_id(0))
    p_row = p_rows + (chunk >> 32) * WORDS
    begin = (chunk & 0xFFFFFFFF) * CHUNK
    trust = tl.load(p_trust + (chunk >> 32))
    word = tl.load(p_row + 7)
    types, p_group = word & 0xFFFFFFFF, p_groups + (word >> 32) * FIELDS
    if teacher_momentum == 1:  # the teacher stays as it is, whatever the parameter holds
        types = types // 5 * 5 + 4
    if factor < 0:  # the step is left out: no kind of row
        types = types - 64
    for k in tl.static_range(len(PAIRS)):
        if types == PAIRS[k][0]:
            lars_chunk(
                p_row,
                begin,
                p_group,
                trust,
                factor,
                teacher_momentum,
                PAIRS[k][1],
                PAIRS[k][2],
                PAIRS[k][0] % 5 != 4,
                ALIGNED,
                CHUNK,
                BLOCK,
            )


def step(tensors: Tensors, groups: Tensor, control: Tensor, trust: Tensor) -> None:
    """One step; see the package."""
    with torch.cuda.device_of(control):
        words = rows(tensors.columns, second=5, groups=tensors.groups)
        table = device_table(words, control)
        if len(table.chunks):
            constants = step_constants(table.types, table.aligned, len(FIELDS))
            lars_kernel[(len(table.chunks),)](
                table.rows, table.chunks, groups, control, trust, **constants, **OPTIONS
            )
