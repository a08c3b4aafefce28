"""Triton on NVIDIA GPUs: row-stationary tiles in both directions; see the kernels' files.

Where D is large, blocks of rows take their place: see _triton_blocks.py. All else here is about the
tiles.

M x N values are never held: beside its results the backward keeps 4 (M + N) bytes of factors for
16-bit inputs and nothing for float32. Where row blocks are too few for the GPU, S programs share
the columns of each (``_tiles.splits``): 8 S M bytes of partial statistics forward, 4 S M D of
partial gradients backward, four tiles a resident program at most. Results are the same from run to
run on a GPU.
"""

import torch
import triton
from torch import Tensor

from sslfast.kernels.gpu import DEVICE, operand, unavailable, without_padding
from sslfast.kernels.lse_parts import merged
from sslfast.kernels.products import in_blocks
from sslfast.kernels.similarity_softmax import (
    Features,
    Pairing,
    Problem,
    _triton_blocks,
    add_positives,
)
from sslfast.kernels.similarity_softmax._triton_backward import backward_kernel, plan_kernel
from sslfast.kernels.similarity_softmax._triton_forward import forward_kernel
from sslfast.kernels.tiles import arithmetic_of, refuses, resident, settings, splits
from sslfast.kernels.tuning import tile_for

__all__ = [
    "DEVICE",
    "FEATURES",
    "PRIORITY",
    "available",
    "backward",
    "backward_both",
    "backward_parts",
    "forward",
    "supports",
]

PRIORITY = 20
# Blocks of rows serve both sides with one sweep.
FEATURES = Features(in_parts=True, both_sides=lambda problem: in_blocks(problem.dim))

available = unavailable


def supports(problem: Problem) -> str | None:
    """Everything in up to float32."""
    return refuses(problem.dtype)


_PLAN = {"BLOCK": 4096}
_PLAN_OPTIONS = {"num_warps": 8, "enable_fp_fusion": True}


def _sizes(rows: Tensor, columns: Tensor, p: Pairing) -> tuple[int, ...]:
    shift = p.shift % p.length if p.length else 0
    self_length = p.length if p.leave_out_self else 0
    return len(rows), len(columns), p.length, shift, p.row_base, p.column_base, self_length


def _row_statistics(
    rows: Tensor, columns: Tensor, scale: Tensor, pairing: Pairing
) -> tuple[Tensor, Tensor]:
    m, dim = rows.shape
    if not m:
        return scale.new_empty(0), scale.new_empty(0)
    arithmetic = arithmetic_of(rows.dtype)
    tile = tile_for("statistics", dim, arithmetic, rows.device)
    constants, options = settings(dim, rows.dtype, arithmetic, tile)
    blocks, tiles = triton.cdiv(m, tile.rows), triton.cdiv(len(columns), tile.columns)
    parts = splits(blocks, tiles, resident(tile, rows.device))
    lse, positive = scale.new_empty(parts, m), scale.new_empty(parts, m)
    sizes = _sizes(rows, columns, pairing)
    with torch.cuda.device_of(rows):
        forward_kernel[(blocks, parts)](
            rows, columns, scale, lse, positive, *sizes, **constants, **options
        )
    return merged(lse, positive)


def forward(
    rows: Tensor, columns: Tensor | None, scale: Tensor, pairing: Pairing, column_lse: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exps and positive logits; see the package."""
    rows, columns = operand(rows), None if columns is None else operand(columns)
    if in_blocks(rows.shape[1]):
        sizes = _sizes(rows, rows if columns is None else columns, pairing)
        return _triton_blocks.statistics(rows, columns, scale, sizes, column_lse)
    lse, positive = _row_statistics(rows, rows if columns is None else columns, scale, pairing)
    if not column_lse:
        return lse, positive, lse.new_empty(0)
    if columns is None:
        return lse, positive, lse.clone()
    return lse, positive, _row_statistics(columns, rows, scale, pairing.transposed())[0]


def backward(
    rows: Tensor,
    columns: Tensor | None,
    scale: Tensor,
    pairing: Pairing,
    row: tuple[Tensor, Tensor] | None,
    column: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """Unscaled gradient of the rows; see the package."""
    u = backward_parts(rows, columns, scale, pairing, row, column)
    return u[0] if len(u) == 1 else u.sum(0)


def backward_parts(
    rows: Tensor,
    columns: Tensor | None,
    scale: Tensor,
    pairing: Pairing,
    row: tuple[Tensor, Tensor] | None,
    column: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """Unscaled gradient of the rows, one part a share of the columns; see the package.

    For 16-bit inputs the weights G_ij are rounded to that dtype before they multiply the columns.
    """
    if not rows.numel() or (row is None and column is None):
        return scale.new_zeros(1, *rows.shape)
    given = rows.shape[1]
    rows, columns = operand(rows), None if columns is None else operand(columns)
    if in_blocks(rows.shape[1]):
        u, _ = _by_blocks(rows, columns, scale, pairing, row, column, False)
        return without_padding(u[None], given)
    y = rows if columns is None else columns
    m, dim = rows.shape
    arithmetic = arithmetic_of(rows.dtype)
    tile = tile_for("gradient", dim, arithmetic, rows.device)
    constants, options = settings(dim, rows.dtype, arithmetic, tile)
    blocks, features = triton.cdiv(m, tile.rows), triton.cdiv(dim, tile.output)
    tiles = triton.cdiv(len(y), tile.columns)
    parts = splits(blocks * features, tiles, resident(tile, rows.device))
    sizes = _sizes(rows, y, pairing)
    statistics = *_contiguous(row), *_contiguous(column)
    u = scale.new_empty(parts, m, dim)
    with torch.cuda.device_of(rows):
        planned = arithmetic == "16-bit" and column is not None
        plan = _plan(statistics, *sizes[:2]) if planned else (None, None, None)
        backward_kernel[(blocks, features, parts)](
            rows, y, scale, *statistics, *plan, u, *sizes,
            **constants, BLOCK_U=tile.output, **options,
        )  # fmt: skip
    return without_padding(u, given)


def backward_both(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    pairing: Pairing,
    row: tuple[Tensor, Tensor] | None,
    column: tuple[Tensor, Tensor] | None,
    positive: Tensor,
) -> tuple[Tensor, Tensor]:
    """Unscaled gradients of rows and columns by blocks, for any D; see the package.

    Positives are added in float32.
    """
    x, y = operand(rows), operand(columns)
    u, v = _by_blocks(x, y, scale, pairing, row, column, True)
    assert v is not None
    u, v = (without_padding(g, rows.shape[1]) for g in (u, v))
    add_positives(u, columns, positive, pairing)
    add_positives(v, rows, positive.roll(pairing.shift), pairing.transposed())
    return u, v


def _by_blocks(
    rows: Tensor,
    columns: Tensor | None,
    scale: Tensor,
    pairing: Pairing,
    row: tuple[Tensor, Tensor] | None,
    column: tuple[Tensor, Tensor] | None,
    columns_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """U and V, or None for it."""
    if columns is None and row is not column:  # G is not symmetric
        columns = rows
    sizes = m, n, *_ = _sizes(rows, rows if columns is None else columns, pairing)
    if row is None and column is None:
        v = scale.new_zeros(n, rows.shape[1]) if columns_gradient else None
        return scale.new_zeros(m, rows.shape[1]), v
    statistics = *_contiguous(row), *_contiguous(column)
    plan: tuple[Tensor | None, ...] = (None, None, None)
    if arithmetic_of(rows.dtype) == "16-bit" and m and n:
        with torch.cuda.device_of(rows):
            if column is not None:
                plan = _plan(statistics, m, n)
            else:  # only the growth of the rows' weights
                plan = None, None, _plan((None, None, *statistics[:2]), n, m)[2]
    u, v = _triton_blocks.gradients(rows, columns, scale, sizes, statistics, plan, columns_gradient)
    if plan[2] is not None:
        for gradient in (u, v):
            if gradient is not None:
                gradient.mul_(plan[2][3])
    return u, v


def _contiguous(side: tuple[Tensor, Tensor] | None) -> tuple[Tensor | None, Tensor | None]:
    return (None, None) if side is None else (side[0].contiguous(), side[1].contiguous())


def _plan(statistics: tuple[Tensor | None, ...], m: int, n: int) -> tuple[Tensor | None, ...]:
    """Factors of rows and columns, and how to use them; see ``plan_kernel``."""
    row_lse, row_weight, column_lse, column_weight = statistics
    assert column_lse is not None
    column_factor, plan = torch.empty_like(column_lse), column_lse.new_empty(4)
    row_factor = None if row_lse is None else torch.empty_like(row_lse)
    if row_lse is column_lse and row_weight is column_weight:  # the symmetric form
        row_lse = row_weight = None
        row_factor = column_factor
    sides = row_lse, row_weight, column_lse, column_weight
    factors = None if row_lse is None else row_factor, column_factor
    blocks = triton.cdiv(max(m, n), _PLAN["BLOCK"])
    plan_kernel[(blocks,)](*sides, *factors, plan, m, n, **_PLAN, **_PLAN_OPTIONS)
    return row_factor, column_factor, plan
