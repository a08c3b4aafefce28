"""Scaling of gradient weights, so that none underflows in the operands' 16 bits.

Weights of the order of 1 / M times probabilities of 1e-6 are below the range of fp16. The power of
two that brings the largest weight to 2^ROOM costs no precision and is undone in float32: products
with a probability down to 2^-27 of the largest keep full precision, smaller ones err by 2^-38.
"""

# mypy: disable-error-code=no-untyped-def

import torch
import triton
import triton.language as tl
from torch import Tensor

ROOM = tl.constexpr(14)  # a probability times 2^ROOM is at the top of the range of fp16
UNDO_ROOM = tl.constexpr(2.0**-14)

_CONSTANTS = {"BLOCK": 4096}
_OPTIONS = {"num_warps": 8, "enable_fp_fusion": True}


@triton.jit
def growth(top):
    """Power of two that brings ``top`` to [2^(ROOM - 1), 2^ROOM), and its inverse."""
    # By their bits: exact.
    exponent = ROOM - 1 + 127 - (top.to(tl.int32, bitcast=True) >> 23)
    exponent = tl.minimum(tl.maximum(exponent, -126), 126)
    grow = ((127 + exponent) << 23).to(tl.float32, bitcast=True)
    shrink = ((127 - exponent) << 23).to(tl.float32, bitcast=True)
    return grow, shrink


@triton.jit(do_not_specialize=["count"])
def growth_kernel(p_weight, p_growth, count, BLOCK: tl.constexpr):
    """Growth of the largest finite |weight|, and its inverse; one program, reads 4 bytes each."""
    b_top = tl.zeros((BLOCK,), tl.float32)
    for first in tl.range(0, count, BLOCK):
        i = first + tl.arange(0, BLOCK)
        b_weight = tl.abs(tl.load(p_weight + i, mask=i < count, other=0))
        b_top = tl.where(b_weight < float("inf"), tl.maximum(b_top, b_weight), b_top)
    grow, shrink = growth(tl.max(b_top, 0))
    tl.store(p_growth, grow)
    tl.store(p_growth + 1, shrink)


def growth_of(weight: Tensor) -> Tensor:
    """(growth, 1 / growth) [2] for contiguous float32 weights, on their device."""
    out = weight.new_empty(2)
    with torch.cuda.device_of(weight):
        growth_kernel[(1,)](weight, out, len(weight), **_CONSTANTS, **_OPTIONS)
    return out
