"""Cross-correlation on a GPU: what surrounds cuBLAS's products, each in one launch.

``moments_kernel`` reads a view once, ``standardize_kernel`` reads it and writes it in its own dtype
for the tensor cores, ``products_kernel`` reads both views, and ``gradient_kernel`` reads a product,
in float32, and both views, twice where it sums g xh first, and writes dx. In 16 bits and for two
views that is 16 N D bytes forward and up to 44 N D backward, beside products of 8 N^2 D or 6 N D^2
FLOP: these are whole matrices, for strips of a triangle would leave most of a GPU idle.

Standardized features are rounded to the inputs' dtype as eager code does; means, variances, what is
summed by ``products_kernel`` and all of ``gradient_kernel`` are from unrounded ones. Matrices that
are multiplied with them are divided by their largest element first: fp16 then holds them.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sslfast.kernels.cross_correlation import Form, Problem, through_grams
from sslfast.kernels.cross_correlation.tiled import squares
from sslfast.kernels.gpu import DEVICE, unavailable
from sslfast.kernels.products import multiply
from sslfast.kernels.tiles import refuses

__all__ = ["DEVICE", "PRIORITY", "available", "backward", "forward", "moments", "supports"]

PRIORITY = 20

available = unavailable

_ROWS, _COLUMNS = 64, 64  # of a tile
_FEW_ROWS = 32  # of one that is all that a program does: more would spill registers
_CONSTANTS = {"BLOCK_N": _ROWS, "BLOCK_D": _COLUMNS}
_OPTIONS: dict[str, Any] = {"num_warps": 4, "num_stages": 3, "enable_fp_fusion": True}


def supports(problem: Problem) -> str | None:
    """Everything but float64."""
    return refuses(problem.dtype)


# mypy: disable-error-code=no-untyped-def


@triton.jit
def load_rows(p, rows, j, N, D: tl.constexpr):
    """Rows of a contiguous [N, D] matrix at columns j, 0 outside, in float32."""
    mask = (rows < N)[:, None] & (j < D)[None, :]
    return tl.load(p + rows.to(tl.int64)[:, None] * D + j[None, :], mask=mask, other=0).to(
        tl.float32
    )


@triton.jit
def standardized(p, p_scaling, rows, j, N, D: tl.constexpr):
    """(x - mean) factor of rows at columns j, 0 outside."""
    mean = tl.load(p_scaling + j, mask=j < D, other=0)
    factor = tl.load(p_scaling + D + j, mask=j < D, other=0)
    b = (load_rows(p, rows, j, N, D) - mean[None, :]) * factor[None, :]
    return tl.where((rows < N)[:, None], b, 0)


@triton.jit(do_not_specialize=["N"])
def moments_kernel(p_x, p_out, N, D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
    """Mean and variance of BLOCK_D columns: those of a tile are merged into those before it."""
    j = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    i = tl.arange(0, BLOCK_N)
    b_mean = tl.zeros((BLOCK_D,), tl.float32)
    b_squares = tl.zeros((BLOCK_D,), tl.float32)
    for first in tl.range(0, N, BLOCK_N):
        rows = first + i
        b = load_rows(p_x, rows, j, N, D)
        count = tl.minimum(N - first, BLOCK_N).to(tl.float32)
        b_own = tl.sum(b, 0) / count
        b_centered = tl.where((rows < N)[:, None], b - b_own[None, :], 0)
        apart = b_own - b_mean
        share = count / (first + count)
        b_mean += share * apart
        b_squares += tl.sum(b_centered * b_centered, 0) + apart * apart * share * first
    tl.store(p_out + j, b_mean, mask=j < D)
    tl.store(p_out + D + j, b_squares / N, mask=j < D)


@triton.jit(do_not_specialize=["N"])
def standardize_kernel(
    p_x, p_scaling, p_out, N, D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr
):
    """One tile of (x - mean) factor in the dtype of the output."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    j = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    b = standardized(p_x, p_scaling, rows, j, N, D)
    mask = (rows < N)[:, None] & (j < D)[None, :]
    tl.store(p_out + rows.to(tl.int64)[:, None] * D + j[None, :], b, mask=mask)


@triton.jit(do_not_specialize=["N"])
def products_kernel(
    p_x, p_y, p_scaling_x, p_scaling_y, p_out, N,
    D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Inner products of BLOCK_D columns of both views."""
    j = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    b_total = tl.zeros((BLOCK_D,), tl.float32)
    for first in tl.range(0, N, BLOCK_N):
        rows = first + tl.arange(0, BLOCK_N)
        b_x = standardized(p_x, p_scaling_x, rows, j, N, D)
        b_total += tl.sum(b_x * standardized(p_y, p_scaling_y, rows, j, N, D), 0)
    tl.store(p_out + j, b_total, mask=j < D)


@triton.jit(do_not_specialize=["N"])
def gradient_kernel(
    p_product, p_own, p_other, p_scaling_own, p_scaling_other, p_alpha, p_beta, p_along, p_out, N,
    D: tl.constexpr, STANDARDIZE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Gradient of BLOCK_D columns from g = alpha product + beta other; p_along may be None."""
    j = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    i = tl.arange(0, BLOCK_N)
    alpha = tl.load(p_alpha)
    b_beta = tl.load(p_beta + j, mask=j < D, other=0)[None, :]
    b_factor = tl.load(p_scaling_own + D + j, mask=j < D, other=0)[None, :]
    b_along = tl.zeros((BLOCK_D,), tl.float32)
    if STANDARDIZE:
        if p_along is not None:
            b_along = tl.load(p_along + j, mask=j < D, other=0)
        else:
            for first in tl.range(0, N, BLOCK_N):
                b_own = standardized(p_own, p_scaling_own, first + i, j, N, D)
                b_other = standardized(p_other, p_scaling_other, first + i, j, N, D)
                b_g = alpha * load_rows(p_product, first + i, j, N, D) + b_beta * b_other
                b_along += tl.sum(b_g * b_own, 0)
            b_along /= N
    for first in tl.range(0, N, BLOCK_N):
        rows = first + i
        b_other = standardized(p_other, p_scaling_other, rows, j, N, D)
        b_g = alpha * load_rows(p_product, rows, j, N, D) + b_beta * b_other
        if STANDARDIZE:
            b_own = standardized(p_own, p_scaling_own, rows, j, N, D)
            b_g = b_factor * (b_g - b_own * b_along[None, :])
        mask = (rows < N)[:, None] & (j < D)[None, :]
        tl.store(p_out + rows.to(tl.int64)[:, None] * D + j[None, :], b_g, mask=mask)


def _of_columns(kernel: Any, x: Tensor, *given: Any, **constants: Any) -> None:
    """Launch a program for every block of columns of x."""
    n, dim = x.shape
    with torch.cuda.device_of(x):
        grid = (triton.cdiv(dim, _COLUMNS),)
        kernel[grid](*given, n, D=dim, **constants, **_CONSTANTS, **_OPTIONS)


def moments(x: Tensor) -> Tensor:
    """Mean and biased variance of the columns; see the package."""
    found = x.new_empty((2, x.shape[1]), dtype=torch.float32)
    _of_columns(moments_kernel, x, x, found)
    return found


def _standardized(x: Tensor, scaling: Tensor) -> Tensor:
    out = torch.empty_like(x)
    n, dim = x.shape
    with torch.cuda.device_of(x):
        grid = triton.cdiv(n, _FEW_ROWS), triton.cdiv(dim, _COLUMNS)
        constants = {**_CONSTANTS, "BLOCK_N": _FEW_ROWS}
        standardize_kernel[grid](x, scaling, out, n, D=dim, **constants, **_OPTIONS)
    return out


def _views(x: Tensor, y: Tensor | None, scaling: Tensor) -> list[Tensor]:
    """Xh and Yh in the dtype of x: one tensor twice for a view with itself."""
    found = [_standardized(v, s) for v, s in zip((x, y), scaling, strict=False) if v is not None]
    return [found[0], found[-1]]


def forward(
    x: Tensor, y: Tensor | None, scaling: Tensor, form: Form, kept: Tensor
) -> tuple[Tensor, Tensor]:
    """Diagonal, and sum of squares off it; see the package."""
    diagonal = scaling.new_empty(x.shape[1])
    given = x, x if y is None else y, scaling[0], scaling[-1], diagonal
    _of_columns(products_kernel, x, *given)
    diagonal /= form.divisor
    views = _views(x, y, scaling)
    if not through_grams(*x.shape):
        c = multiply(views[0].T, views[1], kept[0])
        c /= form.divisor
        c.fill_diagonal_(0)
        return diagonal, squares(c).to(c.dtype)
    for gram, view in zip(kept, views, strict=False):
        multiply(view, view.T, gram)
    total = torch.linalg.vecdot(kept[0], kept[-1]).sum(dtype=torch.float64) / form.divisor**2
    return diagonal, (total - diagonal.double().square().sum()).to(diagonal.dtype)


def _operand(matrix: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """The matrix in a dtype, in 16 bits divided by its largest element, and that; None for 1."""
    if dtype == torch.float32:
        return matrix, None
    top = torch.linalg.vector_norm(matrix, float("inf")).clamp_min(1e-30)
    return torch.div(matrix, top, out=torch.empty_like(matrix, dtype=dtype)), top


def backward(
    d_diagonal: Tensor,
    d_off_diagonal: Tensor,
    x: Tensor,
    y: Tensor | None,
    scaling: Tensor,
    form: Form,
    diagonal: Tensor,
    kept: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradients of x and y; see the package."""
    both = 2 if y is None else 1  # a view with itself has the gradients of both roles
    alpha = 2 * both * d_off_diagonal / form.divisor
    beta = both * d_diagonal / form.divisor
    grams = through_grams(*x.shape)
    along: list[Tensor | None] = [None, None]
    if grams:
        beta = beta - alpha * diagonal
        alpha = alpha / form.divisor
    elif form.standardize:  # sum_i g_ij xh_ij is known beforehand
        along = [alpha * squares(kept[0], k) + beta * diagonal for k in (1, 0)]
    hats = _views(x, y, scaling)
    sides = [(x, x if y is None else y, scaling[0], scaling[-1])]
    if y is not None:
        sides.append((y, x, scaling[1], scaling[0]))
    product = x.new_empty(x.shape, dtype=torch.float32)
    found = []
    for v, (own, other, of_own, of_other) in enumerate(sides):
        matrix, top = _operand(kept[-1 - v] if grams else kept[0], x.dtype)
        if grams:
            multiply(matrix, hats[v], product)
        else:
            multiply(hats[1 - v], matrix if v else matrix.T, product)
        weight = alpha if top is None else alpha * top
        out = torch.empty_like(own)
        given = product, own, other, of_own, of_other, weight, beta, along[v], out
        _of_columns(gradient_kernel, x, *given, STANDARDIZE=form.standardize)
        found.append(out)
    return found[0], x.new_empty(0) if y is None else found[1]
