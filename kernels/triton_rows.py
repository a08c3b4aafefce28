"""What Triton kernels over the table of kernels/tensors.py share."""

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl

from sslfast.kernels.tensors import CHUNK, NONE, WORDS

LANGUAGE_TYPES = (tl.float32, tl.float64, tl.bfloat16, tl.float16)  # by code
OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}
BLOCK = 512  # elements a turn


@triton.jit
def pointer(p_row, n: tl.constexpr, T: tl.constexpr, begin, ALIGNED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Tensor n of a row from element ``begin``, itself a multiple of 16 bytes, on."""
    p_begin = tl.load(p_row + n).to(tl.pointer_type(T)) + begin
    if ALIGNED:
        p_begin = tl.multiple_of(p_begin, 16)
    return p_begin


@triton.jit
def arithmetic(FIRST: tl.constexpr, SECOND: tl.constexpr):  # type: ignore[no-untyped-def]
    """A 0 of the type that arithmetic between two types is done in."""
    if FIRST.is_fp64() or SECOND.is_fp64():
        return tl.full((), 0, tl.float64)
    else:  # noqa: RET505 - Triton takes one branch only
        return tl.full((), 0, tl.float32)


@triton.jit
def lerp(start, end, weight):  # type: ignore[no-untyped-def]
    """Interpolate: start + weight (end - start), exact at both ends: as torch.lerp.

    Infinities are weighed as they are, since equal ones have no difference.
    """
    difference = end - start
    near = start + weight * difference
    between = tl.where(weight < 0.5, near, end - difference * (1 - weight))
    weighed = (1 - weight) * start + weight * end
    return tl.where(tl.abs(difference) < float("inf"), between, weighed)


@triton.jit
def converted(value, T: tl.constexpr):  # type: ignore[no-untyped-def]
    """The same numbers in another type; float32 is on the way to 16 bits."""
    if T.primitive_bitwidth == 16 and value.dtype != T:
        return value.to(tl.float32).to(T)
    else:  # noqa: RET505 - Triton takes one branch only
        return value.to(T)


@triton.jit
def put(p_tensor, i, m, value):  # type: ignore[no-untyped-def]
    """Store elements in the tensor's type, and return them."""
    stored = converted(value, p_tensor.dtype.element_ty)
    tl.store(p_tensor + i, stored, mask=m)
    return stored


@triton.jit
def follow(p_teacher, i, m, student, weight):  # type: ignore[no-untyped-def]
    """Move elements of a teacher towards those of a student; weight has the arithmetic's type.

    Weight 1 copies.
    """
    t = tl.load(p_teacher + i, mask=m)
    moved = lerp(t.to(weight.dtype), student.to(weight.dtype), weight)
    copied = converted(student, t.dtype)
    tl.store(p_teacher + i, tl.where(weight == 1, copied, converted(moved, t.dtype)), mask=m)


def pairs(types: Sequence[int]) -> tuple[tuple[int, Any, Any], ...]:
    """(types, first, second) in Triton's types for every kind of row.

    A missing second stands as the first: tuples of older versions hold no None.
    """
    return tuple(
        (t, LANGUAGE_TYPES[t // 5], LANGUAGE_TYPES[t // 5 if t % 5 == NONE else t % 5])
        for t in types
    )


def with_none(types: Sequence[int]) -> list[int]:
    """All kinds of rows, also with a teacher that stays as it is: momentum is on the device."""
    return sorted({*types, *(t // 5 * 5 + NONE for t in types)})


def step_constants(types: Sequence[int], aligned: bool, fields: int) -> dict[str, object]:
    """Constants of an optimiser's kernel: kinds of rows, and ``fields`` numbers a group."""
    sizes = {"FIELDS": fields, "WORDS": WORDS, "CHUNK": CHUNK, "BLOCK": BLOCK}
    return {"PAIRS": pairs(with_none(types)), "ALIGNED": aligned, **sizes}
