"""Statistics and gradients a block of rows at a time, with weights in memory: for large D.

Forward: one sweep of tiles gives the log-sum-exps of both sides, 2 M N D FLOP and 2 M N
exponentials. Backward: the same sweep writes the weights G in the operands' dtype, and cuBLAS forms
U = G Y and V = G^T X, which adds block to block in a deterministic order: 6 M N D FLOP. The
symmetric form of many rows takes its triangle only, M^2 D FLOP forward and 3 M^2 D backward. See
_triton_block_kernels.py for the sweep and ``in_blocks`` of kernels/products.py for when.

Memory beside the results: at most ``block_bytes`` (2.5 GiB on an H100), the size of V in float32 or
one row of G, whichever is the largest. It holds the G of a block, 2 bytes a logit, or 4 in float32;
forward, partial statistics, 0.05 bytes a logit with tiles of 256 x 128, and 4 more in float32.
Traffic of G in 16 bits: 2 bytes a logit written, 2 read for U, 2 for V. In float32: 4 written and 4
read for the logits, and three times 4 for G.

Predicted, never measured, for CLIP with N = 65,536, D = 512, bf16, on an H100 (1.7 GHz, 132
multiprocessors of 4,096 FLOP a clock; 660 TFLOP/s by cuBLAS; 5.5 TB/s from L2, 3 TB/s from memory).
A sweep has 131,072 tiles of 256 x 128, 993 a multiprocessor, and 2 N^2 D = 4.4 TFLOP:

    sweep    X and Y from L2: 131,072 x 393 KB / 5.5 TB/s = 9.4 ms. In a multiprocessor: 993 tiles
             of 8,192 clocks of products + 1,200 to fill and drain + 4,096 (forward) or 2,048
             (backward) of exponentials + 2,000 of other work, 7.9 to 9.0 ms, mostly beside that
    forward  about 10 ms
    G        about 10.5 ms, in which its 8.6 GB are written
    U and V  2 x 4.4 TFLOP / 660 TFLOP/s = 13.3 ms, and 0.3 to add V of 4 blocks
    in all   about 35 ms

Float32 logits by cuBLAS and a weighing pass over them: 4 bytes more written and 4 read for every
logit of either sweep, 13 + 30 ms. Kernels that keep the gradient beside the products: 113 to 125.
"""

import torch
import triton
from torch import Tensor

from sslfast.kernels.lse_parts import merged_lse
from sslfast.kernels.products import (
    block_memory,
    block_settings,
    logits_in_memory,
    multiply,
    rows_of_a_block,
)
from sslfast.kernels.similarity_softmax._triton_block_kernels import (
    statistics_kernel,
    weights_kernel,
)

# The symmetric form's triangle has a block of rows from the diagonal on: with eight blocks an
# eighth more than half of the logits. With fewer rows than this, launches cost more than it saves.
TRIANGLE_ROWS, TRIANGLE_BLOCKS = 8192, 8

Sizes = tuple[int, ...]  # M, N, length, shift, row_base, column_base, self_length, as in kernels


def _triangular(symmetric: bool, sizes: Sizes) -> bool:
    """Whether the triangle will do: its diagonal must be left out."""
    m, self_length = sizes[0], sizes[-1]
    return symmetric and self_length == m and m >= TRIANGLE_ROWS


def statistics(
    rows: Tensor, columns: Tensor | None, scale: Tensor, sizes: Sizes, column_lse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exps of the rows, their positives, log-sum-exps of the columns or an empty tensor."""
    y = rows if columns is None else columns
    m, n, *pairs = sizes
    triangle = _triangular(columns is None, sizes)
    positive = scale.new_full((m,), -torch.inf)
    none = scale.new_empty(0)
    if not (m and n):
        return positive, positive.clone(), scale.new_full((n,), -torch.inf) if column_lse else none
    both = triangle or (column_lse and columns is not None)
    tile, constants, options = block_settings(m, n, rows)
    logit_bytes = 4 / tile.rows + 4 / tile.columns + (4 if rows.dtype == torch.float32 else 0)
    step = rows_of_a_block(m, n * logit_bytes, 0, rows.device)
    found, lse_columns = [], none
    with torch.cuda.device_of(rows):
        for first in range(0, m, step):
            last, begin = min(first + step, m), first if triangle else 0
            high, wide = triton.cdiv(last - first, tile.rows), triton.cdiv(n - begin, tile.columns)
            row_parts = scale.new_empty(wide, last - first)
            column_parts = scale.new_empty(high, n - begin) if both else None
            logits = logits_in_memory(rows[first:last], y[begin:])
            statistics_kernel[(high * wide,)](
                rows, y, logits, scale, row_parts, column_parts, positive,
                last, n, *pairs, first, begin, **constants, TRIANGLE=triangle, **options,
            )  # fmt: skip
            found.append(merged_lse(row_parts))
            if column_parts is not None:
                more = merged_lse(column_parts)
                if first:
                    known = lse_columns[begin:]
                    torch.logaddexp(known, more, out=known)
                else:
                    lse_columns = more
            del logits  # before the next block takes its memory
    lse = found[0] if len(found) == 1 else torch.cat(found)
    if triangle:
        lse = torch.logaddexp(lse, lse_columns)
    if columns is None:
        lse_columns = lse.clone() if column_lse else none
    return lse, positive, lse_columns


def gradients(
    rows: Tensor,
    columns: Tensor | None,
    scale: Tensor,
    sizes: Sizes,
    statistics: tuple[Tensor | None, ...],
    plan: tuple[Tensor | None, ...],
    columns_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """U [M, D] and V [N, D] (or None), times the growth of the plan, if there is one.

    Statistics are (lse, g) of the rows, then of the columns, contiguous or None; both are the same
    where ``columns`` is None. The plan is that of ``plan_kernel``.
    """
    y = rows if columns is None else columns
    m, n, *pairs = sizes
    dim = rows.shape[1]
    triangle = _triangular(columns is None, sizes)
    u = scale.new_zeros(m, dim) if triangle or not n else scale.new_empty(m, dim)
    v = u if triangle else scale.new_empty(n, dim) if columns_gradient else None
    if not (m and n):
        return u, scale.new_zeros(n, dim) if columns_gradient else None
    tile, constants, options = block_settings(m, n, rows)
    added_bytes = 0 if v is None else 4 * n * dim
    step = rows_of_a_block(m, n * rows.element_size(), added_bytes, rows.device)
    if triangle:
        step = min(step, triton.cdiv(m, TRIANGLE_BLOCKS))
    with torch.cuda.device_of(rows):
        for first in range(0, m, step):
            last, begin = min(first + step, m), first if triangle else 0
            high, wide = triton.cdiv(last - first, tile.rows), triton.cdiv(n - begin, tile.columns)
            x, z = rows[first:last], y[begin:]
            logits = logits_in_memory(x, z)
            g = block_memory(x, len(x), len(z)) if logits is None else logits
            weights_kernel[(high * wide,)](
                rows, y, logits, scale, *statistics, *plan, g,
                last, n, *pairs, first, begin, **constants, TRIANGLE=triangle, **options,
            )  # fmt: skip
            multiply(g, z, u[first:last], add=triangle)
            if v is not None:
                multiply(g.T, x, v[begin:], add=triangle or first > 0)
            del g, logits  # before the next block takes their memory
    return u, v if columns_gradient else None
