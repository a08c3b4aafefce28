"""One tile of logits a program: its statistics of rows and columns, or its gradient weights.

An element has one kind, a negative, a positive or left out, so that one exponential for either side
serves both log-sum-exps: it is taken from the statistics of the element's own kind. Ids and the
threshold are compared for every element; there are no diagonals to look for them on. What leaves is
8 (1 / BLOCK_M + 1 / BLOCK_N) bytes a logit of partial log-sum-exps, or the weights G. For float32
the inner products come from memory, by cuBLAS, and G takes their place.
"""

# mypy: disable-error-code="no-untyped-def, index"

import triton
import triton.language as tl

from sslfast.kernels.triton_tiles import (
    INFINITY,
    LN2,
    LOG2E,
    LOWEST,
    block_logits,
    block_memory,
    halves,
    nth_block,
)

SIZES = ["threshold", "M", "N", "own", "i_first"]


@triton.jit
def _sorted(
    b_s, i, j, M, N, p_row, p_column, p_row_ignored, p_column_ignored, threshold, own,
):  # fmt: skip
    """Which of a tile of inner products are positives, and which are those or negatives."""
    i_row, j_column = tl.minimum(i, M - 1), tl.minimum(j, N - 1)
    m_counts = (i < M)[:, None] & (j < N)[None, :] & (j[None, :] != (i + own)[:, None])
    m_positive = tl.load(p_row + i_row)[:, None] == tl.load(p_column + j_column)[None, :]
    m_out = b_s > threshold
    if p_row_ignored is not None:
        b_ignored = tl.load(p_row_ignored + i_row)[:, None]
        m_out |= b_ignored == tl.load(p_column_ignored + j_column)[None, :]
    return m_positive, m_counts & (m_positive | ~m_out)


@triton.jit
def _added(b_t, m_positive, AXIS: tl.constexpr):
    """Of negatives, then of positives: maxima, and sums of powers of 2 less those maxima."""
    b_negative = tl.maximum(tl.max(tl.where(m_positive, -INFINITY, b_t), AXIS), LOWEST)
    b_positive = tl.maximum(tl.max(tl.where(m_positive, b_t, -INFINITY), AXIS), LOWEST)
    b_top = tl.where(m_positive, tl.expand_dims(b_positive, AXIS), tl.expand_dims(b_negative, AXIS))
    b_e = tl.exp2(b_t - b_top)
    return (
        (b_negative, tl.sum(tl.where(m_positive, 0, b_e), AXIS)),
        (b_positive, tl.sum(tl.where(m_positive, b_e, 0), AXIS)),
    )


@triton.jit
def _store_lse(p, i, count, first, second):
    """The log-sum-exp of two pairs of a maximum and a sum."""
    b_max = tl.maximum(first[0], second[0])
    b_sum = first[1] * tl.exp2(first[0] - b_max) + second[1] * tl.exp2(second[0] - b_max)
    tl.store(p + i, (b_max + tl.log2(b_sum)) * LN2, mask=i < count)


@triton.jit(do_not_specialize=SIZES)
def statistics_kernel(
    p_x, p_y, p_products, p_scale, p_row, p_column, p_row_ignored, p_column_ignored,
    p_row_lse, p_column_lse, threshold, M, N, own, i_first,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    OPERAND: tl.constexpr,
):  # fmt: skip
    """Partial log-sum-exps of a tile's rows [C, 2, M - i_first] and columns [R, 2, N].

    Of negatives, then of positives; of the rows i_first to M and all columns, in R x C tiles. The
    column statistics may be None.
    """
    row_blocks, column_blocks = tl.cdiv(M - i_first, BLOCK_M), tl.cdiv(N, BLOCK_N)
    n_row, n_column = nth_block(tl.program_id(0), row_blocks, column_blocks)
    i_in, i_column = n_row * BLOCK_M + tl.arange(0, BLOCK_M), n_column * BLOCK_N
    b_s = block_logits(
        p_x, p_y, p_products, n_row * BLOCK_M, i_column, i_first, 0, M, N, D,
        BLOCK_M, BLOCK_N, BLOCK_D, OPERAND,
    )  # fmt: skip
    scale = tl.load(p_scale) * LOG2E
    HALF: tl.constexpr = BLOCK_N // 2
    parts = halves(b_s, BLOCK_M, HALF)
    b_none = tl.full((BLOCK_M,), LOWEST, tl.float32), tl.zeros((BLOCK_M,), tl.float32)
    before = b_none, b_none
    for n in tl.static_range(2):
        j = i_column + n * HALF + tl.arange(0, HALF)
        m_positive, m_in = _sorted(
            parts[n], i_first + i_in, j, M, N, p_row, p_column, p_row_ignored, p_column_ignored,
            threshold, own,
        )  # fmt: skip
        b_t = tl.where(m_in, parts[n] * scale, -INFINITY)
        found = _added(b_t, m_positive, 1)
        if n == 1:
            count = M - i_first
            p_row_lse += 2 * n_column * count
            _store_lse(p_row_lse, i_in, count, before[0], found[0])
            _store_lse(p_row_lse + count, i_in, count, before[1], found[1])
        before = found
        if p_column_lse is not None:
            found = _added(b_t, m_positive, 0)
            p_part = p_column_lse + 2 * n_row * N
            for kind in tl.static_range(2):
                b_lse = (found[kind][0] + tl.log2(found[kind][1])) * LN2
                tl.store(p_part + kind * N + j, b_lse, mask=j < N)


@triton.jit
def _weights(b_t, m_positive, p_side, i, count, grow, AXIS: tl.constexpr):
    """Weights of a side (lse, lse_positive, g, g_positive) [4, count] at its elements i."""
    p_side += tl.minimum(i, count - 1)
    b_lse = tl.expand_dims(tl.load(p_side) * LOG2E, AXIS)
    b_lse = tl.where(m_positive, tl.expand_dims(tl.load(p_side + count) * LOG2E, AXIS), b_lse)
    b_g = tl.expand_dims(tl.load(p_side + 2 * count) * grow, AXIS)
    b_g = tl.where(m_positive, tl.expand_dims(tl.load(p_side + 3 * count) * grow, AXIS), b_g)
    return tl.exp2(b_t - b_lse) * b_g


@triton.jit(do_not_specialize=[*SIZES, "all_rows"])
def weights_kernel(
    p_x, p_y, p_products, p_scale, p_row, p_column, p_row_ignored, p_column_ignored,
    p_row_side, p_column_side, p_growth, p_g, threshold, M, N, own, i_first, all_rows,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    OPERAND: tl.constexpr,
):  # fmt: skip
    """Weights G [M - i_first, N] of a tile, times their growth; ``p_g`` may be ``p_products``.

    Sides are (lse, lse_positive, g, g_positive) [4, all_rows] and [4, N]; that of the columns, and
    the growth, may be None.
    """
    row_blocks, column_blocks = tl.cdiv(M - i_first, BLOCK_M), tl.cdiv(N, BLOCK_N)
    n_row, n_column = nth_block(tl.program_id(0), row_blocks, column_blocks)
    i_in, i_column = n_row * BLOCK_M + tl.arange(0, BLOCK_M), n_column * BLOCK_N
    b_s = block_logits(
        p_x, p_y, p_products, n_row * BLOCK_M, i_column, i_first, 0, M, N, D,
        BLOCK_M, BLOCK_N, BLOCK_D, OPERAND,
    )  # fmt: skip
    scale, grow = tl.load(p_scale) * LOG2E, 1.0
    if p_growth is not None:
        grow = tl.load(p_growth)
    HALF: tl.constexpr = BLOCK_N // 2
    parts = halves(b_s, BLOCK_M, HALF)
    for n in tl.static_range(2):
        j = i_column + n * HALF + tl.arange(0, HALF)
        m_positive, m_in = _sorted(
            parts[n], i_first + i_in, j, M, N, p_row, p_column, p_row_ignored, p_column_ignored,
            threshold, own,
        )  # fmt: skip
        b_t = parts[n] * scale
        b_g = _weights(b_t, m_positive, p_row_side, i_first + i_in, all_rows, grow, 1)
        if p_column_side is not None:
            b_g += _weights(b_t, m_positive, p_column_side, j, N, grow, 0)
        p_half, m_half = block_memory(p_g, i_in, j, M - i_first, N)
        b_g = tl.where(m_in, b_g, 0)
        tl.store(p_half, b_g.to(p_g.dtype.element_ty), mask=m_half)
