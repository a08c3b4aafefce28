"""Multi-tensor AdamW in Triton: one launch over the table of kernels/tensors.py, with the teacher.

A program takes one chunk of a tensor: 28 bytes of traffic an element in float32, 36 with a teacher.
Steps and hyperparameters are read on the device.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sslfast.kernels.adamw import FIELDS, Tensors
from sslfast.kernels.gpu import DEVICE, unavailable
from sslfast.kernels.tensors import device_table, rows
from sslfast.kernels.triton_rows import OPTIONS, arithmetic, follow, pointer, put, step_constants

__all__ = ["DEVICE", "PRIORITY", "available", "step"]

PRIORITY = 20

available = unavailable


@triton.jit
def adamw_turn(pointers, numbers, i, m, TEACHER: tl.constexpr):  # type: ignore[no-untyped-def]
    """Elements i, where the mask m allows; the numbers are those of csrc/include/sslfast/update.h.

    They have the type of the arithmetic.
    """
    p_p, p_g, p_m, p_v, p_teacher = pointers
    factor, keep, weight1, beta2, weight2, step_size, scale, eps, teacher_weight = numbers
    g = factor * tl.load(p_g + i, mask=m).to(factor.dtype)
    exp_avg = tl.load(p_m + i, mask=m).to(factor.dtype)
    exp_avg_sq = tl.load(p_v + i, mask=m).to(factor.dtype)
    parameter = keep * tl.load(p_p + i, mask=m).to(factor.dtype)
    exp_avg += weight1 * (g - exp_avg)
    exp_avg_sq = beta2 * exp_avg_sq + weight2 * g * g
    parameter -= step_size * exp_avg / (tl.sqrt(exp_avg_sq) * scale + eps)
    put(p_m, i, m, exp_avg)
    put(p_v, i, m, exp_avg_sq)
    stored = put(p_p, i, m, parameter)
    if TEACHER:
        follow(p_teacher, i, m, stored, teacher_weight)


@triton.jit
def adamw_chunk(  # type: ignore[no-untyped-def]
    p_row,
    begin,
    p_group,
    factor,
    momentum,
    P: tl.constexpr,
    E: tl.constexpr,
    TEACHER: tl.constexpr,
    ALIGNED: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One chunk of a row whose parameter has the type P and whose teacher, if any, E."""
    lr, beta1, beta2 = tl.load(p_group), tl.load(p_group + 1), tl.load(p_group + 2)
    eps, weight_decay = tl.load(p_group + 3), tl.load(p_group + 4)
    t = tl.load(tl.load(p_row + 4).to(tl.pointer_type(tl.float32))).to(tl.float64)
    correction1 = 1 - tl.exp2(t * tl.log2(beta1))
    correction2 = 1 - tl.exp2(t * tl.log2(beta2))
    A: tl.constexpr = arithmetic(P, P).dtype
    p_p, p_g = pointer(p_row, 0, P, begin, ALIGNED), pointer(p_row, 1, P, begin, ALIGNED)
    p_m, p_v = pointer(p_row, 2, P, begin, ALIGNED), pointer(p_row, 3, P, begin, ALIGNED)
    pointers = p_p, p_g, p_m, p_v, pointer(p_row, 5, E, begin, ALIGNED)
    numbers = (
        factor.to(A),
        (1 - lr * weight_decay).to(A),
        (1 - beta1).to(A),
        beta2.to(A),
        (1 - beta2).to(A),
        (lr / correction1).to(A),
        (1 / tl.sqrt(correction2)).to(A),
        eps.to(A),
        (1 - momentum).to(arithmetic(P, E).dtype),
    )
    n = tl.minimum(tl.load(p_row + 6) - begin, CHUNK).to(tl.int32)
    whole = n // BLOCK * BLOCK  # without masks, so that accesses are of 16 bytes
    for first in tl.range(0, whole, BLOCK):
        adamw_turn(pointers, numbers, first + tl.arange(0, BLOCK), None, TEACHER)
    if whole < n:
        i = whole + tl.arange(0, BLOCK)
        adamw_turn(pointers, numbers, i, i < n, TEACHER)


@triton.jit
def adamw_kernel(  # type: ignore[no-untyped-def]
    p_rows,
    p_chunks,
    p_groups,
    p_control,
    PAIRS: tl.constexpr,
    ALIGNED: tl.constexpr,
    FIELDS: tl.constexpr,
    WORDS: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program a chunk."""
    factor, momentum = tl.load(p_control), tl.load(p_control + 1)
    chunk = tl.load(p_chunks + tl.program_id(0))
    p_row = p_rows + (chunk >> 32) * WORDS
    begin = (chunk & 0xFFFFFFFF) * CHUNK
    word = tl.load(p_row + 7)
    types, p_group = word & 0xFFFFFFFF, p_groups + (word >> 32) * FIELDS
    if momentum == 1:  # the teacher stays as it is, whatever the parameter holds
        types = types // 5 * 5 + 4
    if factor < 0:  # the step is left out: no kind of row
        types = types - 64
    for k in tl.static_range(len(PAIRS)):
        if types == PAIRS[k][0]:
            adamw_chunk(
                p_row,
                begin,
                p_group,
                factor,
                momentum,
                PAIRS[k][1],
                PAIRS[k][2],
                PAIRS[k][0] % 5 != 4,
                ALIGNED,
                CHUNK,
                BLOCK,
            )


def step(tensors: Tensors, groups: Tensor, control: Tensor) -> None:
    """One step; see the package."""
    with torch.cuda.device_of(control):
        words = rows(tensors.columns, second=5, groups=tensors.groups)
        table = device_table(words, control)
        if len(table.chunks):
            constants = step_constants(table.types, table.aligned, len(FIELDS))
            adamw_kernel[(len(table.chunks),)](
                table.rows, table.chunks, groups, control, **constants, **OPTIONS
            )
