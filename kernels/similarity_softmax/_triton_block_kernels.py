"""One tile of logits a program: its statistics of rows and columns, or its gradient weights.

A program has its tile from a product over all features, in steps that are pipelined as in any
matrix product, and never writes it. What leaves is 4 (1 / BLOCK_M + 1 / BLOCK_N) bytes a logit of
partial log-sum-exps of both sides, or the weights G in the operands' 16 bits, for products with Y
and X by cuBLAS. 2 M N D FLOP and, forward, an exponential an element and side; X and Y come from
L2, once a column or row of tiles. For float32, where cuBLAS has the faster product, the logits are
read from memory, and G takes their place.

With TRIANGLE, Y is X and only elements (i, j) with i < j count: the diagonal is left out anyway,
and every other one stands for its mirror image too. Its row's statistics are those of row i, its
column's those of row j, and (G + G^T) X is the gradient. Tiles below the diagonal have no work.
"""

# mypy: disable-error-code="no-untyped-def, index"

import triton
import triton.language as tl

from sslfast.kernels.triton_softmax import diagonals, needs_masks, tile_statistics, weights
from sslfast.kernels.triton_tiles import (
    INFINITY,
    LOG2E,
    SIZES,
    block_logits,
    block_memory,
    halves,
    nth_block,
    on_diagonal,
)

BLOCK_SIZES = [*SIZES, "i_first", "j_first"]


@triton.jit(do_not_specialize=BLOCK_SIZES)
def statistics_kernel(
    p_x, p_y, p_logits, p_scale, p_row_lse, p_column_lse, p_positive,
    M, N, length, shift, row_base, column_base, self_length, i_first, j_first,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    TRIANGLE: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    """Partial log-sum-exps of a tile's rows [C, M - i_first] and columns [R, N - j_first].

    Of the rows i_first to M and the columns j_first to N, in R x C tiles. The column statistics may
    be None. ``p_positive`` [all rows] gets the logits of the positives that are met.
    """
    row_blocks, column_blocks = tl.cdiv(M - i_first, BLOCK_M), tl.cdiv(N - j_first, BLOCK_N)
    n_row, n_column = nth_block(tl.program_id(0), row_blocks, column_blocks)
    i_row, i_column = i_first + n_row * BLOCK_M, j_first + n_column * BLOCK_N
    i = i_row + tl.arange(0, BLOCK_M)
    p_row_lse += n_column * (M - i_first) - i_first
    if p_column_lse is not None:
        p_column_lse += n_row * (N - j_first) - j_first
    if TRIANGLE and i_column + BLOCK_N <= i_row:
        j = i_column + tl.arange(0, BLOCK_N)
        tl.store(p_row_lse + i, tl.full((BLOCK_M,), -INFINITY, tl.float32), mask=i < M)
        tl.store(p_column_lse + j, tl.full((BLOCK_N,), -INFINITY, tl.float32), mask=j < N)
        return
    wrapped, straight, itself = diagonals(length, shift, row_base, column_base, self_length)
    masked = needs_masks(
        i_row, i_column, M, N, wrapped, straight, itself, BLOCK_M, BLOCK_N, TRIANGLE
    )
    b_t = block_logits(
        p_x, p_y, p_logits, n_row * BLOCK_M, n_column * BLOCK_N, i_first, j_first, M, N, D,
        BLOCK_M, BLOCK_N, BLOCK_D, OPERAND,
    )  # fmt: skip
    b_t *= tl.load(p_scale) * LOG2E
    tile_statistics(
        b_t, masked, i, i_column, M, N, p_row_lse, p_column_lse, p_positive,
        wrapped, straight, itself, BLOCK_M, BLOCK_N, TRIANGLE,
    )  # fmt: skip


@triton.jit(do_not_specialize=BLOCK_SIZES)
def weights_kernel(
    p_x, p_y, p_logits, p_scale, p_row_lse, p_row_weight, p_column_lse, p_column_weight,
    p_row_factor, p_column_factor, p_plan, p_g,
    M, N, length, shift, row_base, column_base, self_length, i_first, j_first,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    TRIANGLE: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    """Weights G of a tile, times the growth of the plan; ``p_g`` may be ``p_logits``.

    Statistics of either side, its factors, and the plan may be None; see _triton_backward.py.
    """
    row_blocks, column_blocks = tl.cdiv(M - i_first, BLOCK_M), tl.cdiv(N - j_first, BLOCK_N)
    n_row, n_column = nth_block(tl.program_id(0), row_blocks, column_blocks)
    i_row, i_column = i_first + n_row * BLOCK_M, j_first + n_column * BLOCK_N
    i, j = n_row * BLOCK_M + tl.arange(0, BLOCK_M), n_column * BLOCK_N + tl.arange(0, BLOCK_N)
    if TRIANGLE and i_column + BLOCK_N <= i_row:
        p_tile, m_tile = block_memory(p_g, i, j, M - i_first, N - j_first)
        tl.store(p_tile, tl.zeros((BLOCK_M, BLOCK_N), p_g.dtype.element_ty), mask=m_tile)
        return
    wrapped, straight, itself = diagonals(length, shift, row_base, column_base, self_length)
    masked = needs_masks(
        i_row, i_column, M, N, wrapped, straight, itself, BLOCK_M, BLOCK_N, TRIANGLE
    )
    b_t = block_logits(
        p_x, p_y, p_logits, n_row * BLOCK_M, n_column * BLOCK_N, i_first, j_first, M, N, D,
        BLOCK_M, BLOCK_N, BLOCK_D, OPERAND,
    )  # fmt: skip
    b_t *= tl.load(p_scale) * LOG2E
    HALF: tl.constexpr = BLOCK_N // 2
    parts = halves(b_t, BLOCK_M, HALF)
    for n in tl.static_range(2):
        j = n_column * BLOCK_N + n * HALF + tl.arange(0, HALF)
        i_whole, j_whole = i_first + i, j_first + j
        b_g = weights(
            parts[n], i_whole, j_whole, M, N, p_row_lse, p_row_weight, p_column_lse,
            p_column_weight, p_row_factor, p_column_factor, p_plan,
        )  # fmt: skip
        if masked:
            i_positive = tl.maximum(on_diagonal(i_whole, wrapped), on_diagonal(i_whole, straight))
            m_in = j_whole[None, :] != i_positive[:, None]
            if TRIANGLE:
                m_in &= j_whole[None, :] > i_whole[:, None]
            else:
                m_in &= j_whole[None, :] != on_diagonal(i_whole, itself)[:, None]
            b_g = tl.where(m_in, b_g, 0)
        p_half, m_half = block_memory(p_g, i, j, M - i_first, N - j_first)
        tl.store(p_half, b_g.to(p_g.dtype.element_ty), mask=m_half)
