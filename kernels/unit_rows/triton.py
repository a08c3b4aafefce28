"""Rows and their gradients in Triton: one launch each, a few rows a program, kept in registers.

``normalize_kernel`` reads 2 M D bytes of 16-bit rows, and writes as much and 4 M of norms.
``gradient_kernel`` reads 4 S M D bytes of partial sums, 2 M D of the rows and 2 M D of those they
are paired with, and writes 2 M D; V, and float32 copies of rows, are never in memory. Both take a
few FLOP an element. The inner product comes as one partial sum a program, which torch adds up.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sslfast.kernels.gpu import DEVICE, unavailable
from sslfast.kernels.unit_rows import EPS, Positives, Problem

__all__ = ["DEVICE", "PRIORITY", "available", "gradient", "normalize"]

PRIORITY = 20
MOST = 16384

available = unavailable

_BLOCK = 1024  # elements of a program
_FEW = 4  # partial sums; beyond, rows are so few that each gets a program
_EPS = tl.constexpr(EPS)


def supports(problem: Problem) -> str | None:
    """Rows in up to float32 that fit in the registers of a program."""
    if problem.dtype == torch.float64:
        return "sums in float32 and takes no float64"
    if problem.dim > MOST:
        return f"takes rows of at most {MOST} numbers"
    return None


@triton.jit(do_not_specialize=["M"])
def normalize_kernel(  # type: ignore[no-untyped-def]
    p_x, p_z, p_norm, M, D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Unit rows and norms of BLOCK_M rows."""
    i = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_D)[None, :]
    m_x = (i < M)[:, None] & (k < D)
    at = i.to(tl.int64)[:, None] * D + k
    b_x = tl.load(p_x + at, mask=m_x, other=0).to(tl.float32)
    b_norm = tl.sqrt_rn(tl.sum(b_x * b_x, 1))
    b_norm = tl.where(b_norm < _EPS, _EPS, b_norm)  # a maximum would drop a NaN
    b_z = tl.div_rn(b_x, tl.broadcast_to(b_norm[:, None], (BLOCK_M, BLOCK_D)))
    tl.store(p_z + at, b_z, mask=m_x)
    tl.store(p_norm + i, b_norm, mask=i < M)


@triton.jit(do_not_specialize=["share", "M", "S", "length", "shift", "row_base", "column_base"])
def gradient_kernel(  # type: ignore[no-untyped-def]
    p_part, p_z, p_norm, p_scale, p_other, p_own, p_partner, p_dx, p_inner,
    share, M, S, length, shift, row_base, column_base,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Gradient of BLOCK_M rows, and their part of the inner product.

    Any of p_norm, p_other, p_own, p_partner and p_inner may be None. UNROLL parts load at a time.
    """
    i = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_D)[None, :]
    m_row = (i < M)[:, None] & (k < D)
    at = i.to(tl.int64)[:, None] * D + k
    b_v = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for first in tl.range(0, S, UNROLL):
        p_first = p_part + tl.cast(first, tl.int64) * M * D
        for n in tl.static_range(UNROLL):
            p_n = p_first + tl.cast(n, tl.int64) * M * D
            # A scalar in a mask would trip the interpreter: no row of a part that there is not.
            m_part = (i < tl.where(first + n < S, M, 0))[:, None] & (k < D)
            b_v += tl.load(p_n + at, mask=m_part, other=0)

    if p_other is not None:
        a = i - row_base
        m_pair = (a >= 0) & (a < length) & (i < M)
        b = tl.where(a + shift >= length, a + shift - length, a + shift)
        b_weight = tl.zeros((BLOCK_M,), tl.float32)
        if p_own is not None:
            b_weight += tl.load(p_own + a, mask=m_pair, other=0)
        if p_partner is not None:
            b_weight += tl.load(p_partner + b, mask=m_pair, other=0)
        p_pair = p_other + (column_base + b).to(tl.int64)[:, None] * D + k
        b_other = tl.load(p_pair, mask=m_pair[:, None] & (k < D), other=0).to(tl.float32)
        b_v += b_weight[:, None] * b_other

    if p_norm is not None or p_inner is not None:
        b_z = tl.load(p_z + at, mask=m_row, other=0).to(tl.float32)
        b_along = tl.sum(b_z * b_v, 1)
    if p_inner is not None:
        tl.store(p_inner + tl.program_id(0), tl.sum(b_along, 0) * share)
    scale = tl.load(p_scale)
    if p_norm is not None:
        b_norm = tl.load(p_norm + i, mask=i < M, other=1)
        b_v -= b_z * b_along[:, None]
        b_v *= tl.where(b_norm <= _EPS, 0, scale / b_norm)[:, None]
    else:
        b_v *= scale
    tl.store(p_dx + at, b_v, mask=m_row)


def _settings(dim: int, parts: int = 1) -> tuple[dict[str, Any], dict[str, Any]]:
    """Constants, and compiler options: 8 elements a thread."""
    block = max(triton.next_power_of_2(dim), 16)
    rows = max(_BLOCK // block, 1) if parts <= _FEW else 1
    constants = {"D": dim, "BLOCK_M": rows, "BLOCK_D": block}
    return constants, {"num_warps": min(max(rows * block // 256, 1), 16), "enable_fp_fusion": True}


def normalize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Unit rows and norms; see the package."""
    m, dim = x.shape
    z, norms = torch.empty_like(x), x.new_empty(m, dtype=torch.float32)
    constants, options = _settings(dim)
    if m:
        with torch.cuda.device_of(x):
            normalize_kernel[(triton.cdiv(m, constants["BLOCK_M"]),)](
                x, z, norms, m, **constants, **options
            )
    return z, norms


def gradient(
    parts: Tensor,
    z: Tensor,
    norms: Tensor | None,
    scale: Tensor,
    positives: Positives | None,
    share: float | None,
) -> tuple[Tensor, Tensor]:
    """Gradient of the rows before their normalisation; see the package."""
    m, dim = z.shape
    constants, options = _settings(dim, len(parts))
    blocks = triton.cdiv(m, constants["BLOCK_M"])
    unroll = triton.next_power_of_2(len(parts)) if len(parts) <= _FEW else 2 * _FEW
    pair: tuple[Tensor | None, ...] = (None, None, None)
    window = (0, 0, 0, 0)
    if positives is not None and positives.pairing.length:
        p = positives.pairing
        sides = (None if w is None else w.contiguous() for w in (positives.own, positives.partner))
        pair, window = (positives.other, *sides), (
            p.length, p.shift % p.length, p.row_base, p.column_base,
        )  # fmt: skip
    dx = torch.empty_like(z)
    inner = None if share is None else scale.new_empty(blocks)
    if m:
        with torch.cuda.device_of(z):
            gradient_kernel[(blocks,)](
                parts, z, norms, scale, *pair, dx, inner, share or 0.0, m, len(parts), *window,
                **constants, UNROLL=unroll, **options,
            )  # fmt: skip
    return dx, scale.new_empty(0) if inner is None else inner.sum()
