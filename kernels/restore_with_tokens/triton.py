"""Decoder input of a masked autoencoder in Triton: one program a row forward, a sample backward.

Forward reads K D + L D (positions, from the L2 cache) elements a sample and writes L D. Backward
reads L D and writes K D, and D sums a sample that torch adds over the batch: a deterministic order,
no atomics.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sslfast.kernels.dtypes import accumulation_dtype
from sslfast.kernels.gpu import DEVICE, unavailable

__all__ = ["DEVICE", "PRIORITY", "available", "backward", "forward"]

PRIORITY = 20

available = unavailable


@triton.jit(do_not_specialize=["length", "keep"])
def forward_kernel(  # type: ignore[no-untyped-def]
    p_visible, p_token, p_ids_restore, p_positions, p_out, length, keep,
    D: tl.constexpr, BLOCK: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """One row of the decoder's input."""
    i_row = tl.program_id(0).to(tl.int64)
    i_sample = i_row // length
    place = tl.load(p_ids_restore + i_row)
    p_from = p_token
    if place < keep:
        p_from = p_visible + (i_sample * keep + place) * D
    for i_first in range(0, D, BLOCK):
        i_dim = i_first + tl.arange(0, BLOCK)
        m_dim = i_dim < D
        values = tl.load(p_from + i_dim, mask=m_dim)
        if p_positions is not None:
            position = tl.load(p_positions + (i_row - i_sample * length) * D + i_dim, mask=m_dim)
            values = values.to(SUM) + position.to(SUM)
        tl.store(p_out + i_row * D + i_dim, values, mask=m_dim)


@triton.jit(do_not_specialize=["length", "keep"])
def backward_kernel(  # type: ignore[no-untyped-def]
    p_gradient, p_ids_restore, p_d_visible, p_d_token, length, keep,
    D: tl.constexpr, BLOCK: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """Rows back to their places, and the sum of the hidden ones: BLOCK features of a sample."""
    i_sample = tl.program_id(0).to(tl.int64)
    i_dim = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m_dim = i_dim < D
    total = tl.zeros((BLOCK,), SUM)
    for i_element in range(length):
        place = tl.load(p_ids_restore + i_sample * length + i_element)
        p_row = p_gradient + (i_sample * length + i_element) * D
        values = tl.load(p_row + i_dim, mask=m_dim, other=0.0)
        if place < keep:
            tl.store(p_d_visible + (i_sample * keep + place) * D + i_dim, values, mask=m_dim)
        else:
            total += values.to(SUM)
    tl.store(p_d_token + i_sample * D + i_dim, total, mask=m_dim)


_OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}


def _constants(dtype: torch.dtype, dim: int, most: int) -> dict[str, Any]:
    block = min(triton.next_power_of_2(dim), most)
    return {"D": dim, "BLOCK": block, "SUM": tl.float64 if dtype == torch.float64 else tl.float32}


def forward(
    visible: Tensor, token: Tensor, ids_restore: Tensor, positions: Tensor | None
) -> Tensor:
    """Decoder input; see the package."""
    visible, token, ids_restore = (t.contiguous() for t in (visible, token, ids_restore))
    positions = None if positions is None else positions.contiguous()
    (batch, keep, dim), length = visible.shape, ids_restore.shape[1]
    out = visible.new_empty(batch, length, dim)
    if out.numel():
        constants = _constants(visible.dtype, dim, 1024)
        with torch.cuda.device_of(visible):
            forward_kernel[(batch * length,)](
                visible, token, ids_restore, positions, out, length, keep, **constants, **_OPTIONS
            )
    return out


def backward(gradient: Tensor, ids_restore: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Gradients of encoded rows and token; see the package."""
    gradient, ids_restore = gradient.contiguous(), ids_restore.contiguous()
    batch, length, dim = gradient.shape
    d_visible = gradient.new_empty(batch, keep, dim)
    d_token = gradient.new_empty(batch, dim, dtype=accumulation_dtype(gradient.dtype))
    if d_token.numel():
        constants = _constants(gradient.dtype, dim, 256)
        grid = batch, triton.cdiv(dim, constants["BLOCK"])
        with torch.cuda.device_of(gradient):
            backward_kernel[grid](
                gradient, ids_restore, d_visible, d_token, length, keep, **constants, **_OPTIONS
            )
    return d_visible, d_token.sum(0)
