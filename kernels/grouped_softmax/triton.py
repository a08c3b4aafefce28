"""Triton on NVIDIA GPUs: a block of rows at a time, with weights in memory, for every D.

Forward: one sweep of tiles gives the log-sum-exps of both kinds and both sides, 2 M N D FLOP.
Backward: the same sweep writes the weights G in the operands' dtype, and cuBLAS forms U = G Y and
V = G^T X, which adds block to block in a deterministic order: 6 M N D FLOP, 4 without V. An
exponential a logit and side in either sweep. The symmetric form takes its rows for columns.

Memory and traffic are those of similarity_softmax/_triton_blocks.py, with twice the partial
statistics.
"""

import torch
import triton
from torch import Tensor

from sslfast.kernels.dtypes import statistics_dtype
from sslfast.kernels.gpu import DEVICE, operand, unavailable, without_padding
from sslfast.kernels.grouped_softmax import Groups, Problem, Side
from sslfast.kernels.grouped_softmax._triton_kernels import statistics_kernel, weights_kernel
from sslfast.kernels.growth import growth_of
from sslfast.kernels.lse_parts import merged_lse
from sslfast.kernels.products import (
    block_memory,
    block_settings,
    logits_in_memory,
    multiply,
    rows_of_a_block,
)
from sslfast.kernels.similarity_softmax import Features
from sslfast.kernels.tiles import refuses

__all__ = ["DEVICE", "FEATURES", "PRIORITY", "available", "backward", "forward", "supports"]

PRIORITY = 20
FEATURES = Features()

available = unavailable


def supports(problem: Problem) -> str | None:
    """Everything in up to float32."""
    return refuses(problem.dtype)


def _ids(groups: Groups) -> tuple[Tensor | None, ...]:
    """Of rows, of columns, and those that are ignored; both or neither."""
    ignored: tuple[Tensor | None, ...] = groups.row_ignored, groups.column_ignored
    if None in ignored:
        ignored = None, None
    found = groups.row, groups.column, *ignored
    return tuple(None if t is None else t.contiguous() for t in found)


def _limits(groups: Groups, rows: int) -> tuple[float, int]:
    """The threshold, and how far right of the diagonal a row's own column is."""
    limit = float("inf") if groups.threshold is None else groups.threshold
    return limit, -rows if groups.own is None else groups.own  # a column that no row has


def forward(
    rows: Tensor, columns: Tensor | None, scale: Tensor, groups: Groups, sides: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-sum-exps; see the package."""
    dtype = statistics_dtype(rows)
    x = operand(rows)
    y = x if columns is None else operand(columns)
    m, n = len(x), len(y)
    of_rows = scale.new_full((2, m), -torch.inf)
    of_columns = scale.new_full((2, n if sides and columns is not None else 0), -torch.inf)
    tile, constants, options = block_settings(m, n, x, "sorted block")
    logit_bytes = 8 / tile.rows + 8 / tile.columns + (4 if x.dtype == torch.float32 else 0)
    step = rows_of_a_block(m, n * logit_bytes, 0, x.device) if m and n else 1
    ids, (limit, own) = _ids(groups), _limits(groups, m)
    with torch.cuda.device_of(x):
        for first in range(0, m if n else 0, step):
            last = min(first + step, m)
            high, wide = triton.cdiv(last - first, tile.rows), triton.cdiv(n, tile.columns)
            row_parts = scale.new_empty(wide, 2, last - first)
            column_parts = scale.new_empty(high, 2, n) if of_columns.numel() else None
            products = logits_in_memory(x[first:last], y)
            statistics_kernel[(high * wide,)](
                x, y, products, scale, *ids, row_parts, column_parts,
                limit, last, n, own, first, **constants, **options,
            )  # fmt: skip
            of_rows[:, first:last] = merged_lse(row_parts.flatten(1)).view(2, -1)
            if column_parts is not None:
                more = merged_lse(column_parts.flatten(1)).view(2, -1)
                torch.logaddexp(of_columns, more, out=of_columns)
            del products  # before the next block takes its memory
    if sides and columns is None:
        of_columns = of_rows.clone()
    # An op's results may not share memory.
    found = [t.to(dtype, copy=True) for t in (*of_rows, *of_columns)]
    return found[0], found[1], found[2], found[3]


def _statistics(side: Side | None, positive: Side | None) -> Tensor | None:
    """(lse, lse_positive, g, g_positive) [4, N] of a side, or None."""
    if side is None or positive is None:
        return None
    found = torch.stack([t.float() for pair in zip(side, positive, strict=True) for t in pair])
    lses = found[:2]
    lses.masked_fill_(lses == -torch.inf, 0)  # a logit of -inf then has no weight in an empty sum
    return found


def backward(
    rows: Tensor,
    columns: Tensor | None,
    scale: Tensor,
    groups: Groups,
    row: Side,
    row_positive: Side,
    column: Side | None,
    column_positive: Side | None,
    columns_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """Unscaled gradients; see the package.

    For 16-bit inputs the weights are rounded to that dtype before they are multiplied, and scaled
    so that none underflows: see kernels/growth.py.
    """
    x = operand(rows)
    y = x if columns is None else operand(columns)
    (m, dim), n = x.shape, len(y)
    u = scale.new_zeros(m, dim)
    v = scale.new_zeros(n if columns_gradient else 0, dim)
    of_rows, of_columns = _statistics(row, row_positive), _statistics(column, column_positive)
    tile, constants, options = block_settings(m, n, x, "sorted block")
    step = rows_of_a_block(m, n * x.element_size(), 4 * v.numel(), x.device) if m and n else 1
    ids, (limit, own) = _ids(groups), _limits(groups, m)
    growth = None
    with torch.cuda.device_of(x):
        if x.dtype != torch.float32:
            given = (side[2:].flatten() for side in (of_rows, of_columns) if side is not None)
            growth = growth_of(torch.cat(tuple(given)))
        for first in range(0, m if n else 0, step):
            last = min(first + step, m)
            high, wide = triton.cdiv(last - first, tile.rows), triton.cdiv(n, tile.columns)
            products = logits_in_memory(x[first:last], y)
            g = block_memory(x, last - first, n) if products is None else products
            weights_kernel[(high * wide,)](
                x, y, products, scale, *ids, of_rows, of_columns, growth, g,
                limit, last, n, own, first, m, **constants, **options,
            )  # fmt: skip
            multiply(g, y, u[first:last])
            if columns_gradient:
                multiply(g.T, x[first:last], v, add=first > 0)
            del g, products  # before the next block takes their memory
    if growth is not None:
        for gradient in (u, v):
            gradient.mul_(growth[1])
    v = without_padding(v, rows.shape[1]) if columns_gradient else v.flatten()
    return without_padding(u, rows.shape[1]), v
