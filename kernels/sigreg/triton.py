"""SIGReg in Triton: a tile of projections stays in registers for all its cosines and sines.

Forward reads the projections once and writes 2 K sums for every ``ROWS`` rows of a direction, which
are added up afterwards: a quarter of what it reads for K = 16. Backward reads the projections and
writes their gradient in their place. The cosine and sine of a projection cost some 30 operations,
every further node four.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sslfast.kernels.dtypes import statistics_dtype
from sslfast.kernels.gpu import DEVICE, unavailable
from sslfast.kernels.sigreg import Form, Problem

__all__ = ["DEVICE", "PRIORITY", "available", "gradient_", "sums", "supports"]

PRIORITY = 20
ROWS, COLUMNS = 128, 32  # of a tile

_CONSTANTS = {"BLOCK_N": ROWS, "BLOCK_M": COLUMNS}
_OPTIONS: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": True}

available = unavailable


def supports(problem: Problem) -> str | None:
    """Everything in float32."""
    if problem.dtype != torch.float32:
        return f"takes float32, not {str(problem.dtype).removeprefix('torch.')}"
    return None


# mypy: disable-error-code=no-untyped-def


@triton.jit
def turn(x):
    """Cosine and sine to about 1 ulp of angles up to 1e4, bounded beyond; NaN of no finite angle.

    The nearest multiple of pi / 2 is subtracted in three parts (Cody and Waite); polynomials:
    Cephes sinf and cosf.
    """
    shifted = x * 0.636619772367581343 + 12582912.0  # 1.5 * 2^23: adding it rounds to an integer
    n = shifted - 12582912.0
    r = tl.fma(n, -1.5703125, x)
    r = tl.fma(n, -4.837512969970703125e-4, r)
    r = tl.fma(n, -7.549789948768648e-8, r)
    r = tl.where(r > 0.7853982, 0.7853982, r)  # NaN passes
    r = tl.where(r < -0.7853982, -0.7853982, r)
    quarter = shifted.to(tl.int32, bitcast=True)
    q = r * r
    s = r + r * q * (-1.6666654611e-1 + q * (8.3321608736e-3 - q * 1.9515295891e-4))
    c = 4.166664568298827e-2 + q * (-1.388731625493765e-3 + q * 2.443315711809948e-5)
    c = 1.0 - 0.5 * q + q * q * c
    odd = (quarter & 1) != 0
    u = tl.where(odd, s, c)
    v = tl.where(odd, c, s)
    cosine = tl.where(((quarter + 1) & 2) != 0, -u, u)
    return cosine, tl.where((quarter & 2) != 0, -v, v)


@triton.jit
def load_tile(p, i_view, rows, columns, N, M):
    """Where a tile of projections [V, N, M] lies, what of it there is, and its numbers."""
    at = p + (i_view * N + rows.to(tl.int64))[:, None] * M + columns[None, :]
    mask = (rows < N)[:, None] & (columns < M)[None, :]
    return at, mask, tl.load(at, mask=mask, other=0.0)


@triton.jit(do_not_specialize=["N", "step", "K"])
def sums_kernel(p, p_out, N, M, step, K, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr):
    """Sums over the rows of a tile, out [tiles of rows, V, 2, K, M]."""
    i_view = tl.program_id(2).to(tl.int64)
    rows = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    _, mask, b_p = load_tile(p, i_view, rows, columns, N, M)
    b_c, b_s = turn(b_p * step)
    b_c = tl.where(mask, b_c, 0.0)
    b_s = tl.where(mask, b_s, 0.0)
    b_x = b_c
    b_y = b_s
    i_tile = tl.program_id(1).to(tl.int64) * tl.num_programs(2) + i_view
    p_out += i_tile * 2 * K * M + columns
    for k in range(0, K):
        tl.store(p_out + k * M, tl.sum(b_x, 0), mask=columns < M)
        tl.store(p_out + (K + k) * M, tl.sum(b_y, 0), mask=columns < M)
        b_real = b_x * b_c - b_y * b_s
        b_y = b_x * b_s + b_y * b_c
        b_x = b_real


@triton.jit(do_not_specialize=["N", "step", "K"])
def gradient_kernel(p, p_coefficients, N, M, step, K, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr):
    """The gradient of a tile by Horner's scheme, coefficients [V, 2, K, M]."""
    i_view = tl.program_id(2).to(tl.int64)
    rows = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    at, mask, b_p = load_tile(p, i_view, rows, columns, N, M)
    b_c, b_s = turn(b_p * step)
    p_coefficients += i_view * 2 * K * M + columns
    b_x = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    b_y = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for last in range(0, K):
        k = K - 1 - last
        of_cos = tl.load(p_coefficients + k * M, mask=columns < M, other=0.0)
        of_sin = tl.load(p_coefficients + (K + k) * M, mask=columns < M, other=0.0)
        b_real = b_x + of_cos[None, :]
        b_imaginary = b_y - of_sin[None, :]
        b_x = b_real * b_c - b_imaginary * b_s
        b_y = b_real * b_s + b_imaginary * b_c
    tl.store(at, b_x, mask=mask)


def _grid(p: Tensor) -> tuple[int, int, int]:
    views, rows, directions = p.shape
    return triton.cdiv(directions, COLUMNS), triton.cdiv(rows, ROWS), views


def sums(p: Tensor, form: Form) -> Tensor:
    """Sums of cosines and sines; see the package."""
    views, rows, directions = p.shape
    grid = _grid(p)
    parts = p.new_empty(grid[1], views, 2, form.count, directions)
    if p.numel():
        given = (p, parts, rows, directions, form.step, form.count)
        with torch.cuda.device_of(p):
            sums_kernel[grid](*given, **_CONSTANTS, **_OPTIONS)
    return parts.sum(0, dtype=statistics_dtype(p))


def gradient_(p: Tensor, coefficients: Tensor, form: Form) -> None:
    """Gradient of the projections, in their place; see the package."""
    _, rows, directions = p.shape
    if p.numel():
        given = (p, coefficients.contiguous(), rows, directions, form.step, form.count)
        with torch.cuda.device_of(p):
            gradient_kernel[_grid(p)](*given, **_CONSTANTS, **_OPTIONS)
