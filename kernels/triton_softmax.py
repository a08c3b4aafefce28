"""What the kernels of softmaxes share whose programs have one tile of logits each.

A program stores partial log-sum-exps of its tile's rows and columns, for kernels/lse_parts.py to
join, or has the tile's weights. With TRIANGLE, only elements (i, j) with i < j count.
"""

# mypy: disable-error-code="no-untyped-def, index"

import triton
import triton.language as tl

from sslfast.kernels.triton_tiles import INFINITY, LN2, LOG2E, LOWEST, halves, on_diagonal, touches


@triton.jit
def diagonals(length, shift, row_base, column_base, self_length):
    """Of positives before and after the wrap, and of rows themselves."""
    wrapped = (row_base + length - shift, column_base, shift)
    straight = (row_base, column_base + shift, length - shift)
    return wrapped, straight, (row_base, column_base, self_length)


@triton.jit
def needs_masks(
    i_row, i_column, M, N, wrapped, straight, itself,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, TRIANGLE: tl.constexpr,
):  # fmt: skip
    """Whether some element of a tile does not count for its row and column like the others."""
    masked = touches(i_row, i_column, wrapped, BLOCK_M, BLOCK_N)
    masked |= touches(i_row, i_column, straight, BLOCK_M, BLOCK_N)
    masked |= touches(i_row, i_column, itself, BLOCK_M, BLOCK_N)
    masked |= (i_row + BLOCK_M > M) | (i_column + BLOCK_N > N)
    if TRIANGLE:
        masked |= i_row + BLOCK_M > i_column
    return masked


@triton.jit
def negatives(
    b_t, i, i_column, M, N, p_positive, wrapped, straight, itself,
    BLOCK_N: tl.constexpr, TRIANGLE: tl.constexpr,
):  # fmt: skip
    """Logits with -inf where no negative stands; those of positives are stored."""
    i_positive = tl.maximum(on_diagonal(i, wrapped), on_diagonal(i, straight))
    m_here = (i < M) & (i_positive >= i_column) & (i_positive < i_column + BLOCK_N)
    i_least = tl.where(i < M, i + 1 if TRIANGLE else 0, N)
    j = i_column + tl.arange(0, BLOCK_N)
    j = tl.where(j < N, j, -1)[None, :]
    b_positive = tl.sum(tl.where(j == i_positive[:, None], b_t, 0), 1) * LN2
    m_in = (j >= i_least[:, None]) & (j != i_positive[:, None])
    if TRIANGLE:
        m_here &= i <= i_positive
        tl.store(p_positive + i_positive, b_positive, mask=m_here)  # pairs are mutual
    else:
        m_in &= j != on_diagonal(i, itself)[:, None]
    tl.store(p_positive + i, b_positive, mask=m_here)
    return tl.where(m_in, b_t, -INFINITY)


@triton.jit
def tile_statistics(
    b_t, masked, i, i_column, M, N, p_row_lse, p_column_lse, p_positive,
    wrapped, straight, itself,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, TRIANGLE: tl.constexpr,
):  # fmt: skip
    """Store log-sum-exps of a tile's rows, of its columns where asked, and its positives' logits.

    Logits are to base 2; rows i and columns from i_column on are offsets of the pointers too.
    """
    HALF: tl.constexpr = BLOCK_N // 2
    parts = halves(b_t, BLOCK_M, HALF)
    b_max = tl.full((BLOCK_M,), LOWEST, tl.float32)
    b_sum = tl.zeros((BLOCK_M,), tl.float32)
    for n in tl.static_range(2):
        j_half = i_column + n * HALF
        b_half = parts[n]
        if masked:
            b_half = negatives(
                b_half, i, j_half, M, N, p_positive, wrapped, straight, itself, HALF, TRIANGLE
            )
        # The maximum drops a NaN, the sum keeps it.
        b_new = tl.maximum(b_max, tl.max(b_half, 1))
        b_sum = b_sum * tl.exp2(b_max - b_new) + tl.sum(tl.exp2(b_half - b_new[:, None]), 1)
        b_max = b_new
        if p_column_lse is not None:
            b_top = tl.maximum(tl.max(b_half, 0), LOWEST)
            b_total = tl.sum(tl.exp2(b_half - b_top[None, :]), 0)
            j = j_half + tl.arange(0, HALF)
            tl.store(p_column_lse + j, (b_top + tl.log2(b_total)) * LN2, mask=j < N)
    tl.store(p_row_lse + i, (b_max + tl.log2(b_sum)) * LN2, mask=i < M)


@triton.jit
def weights(
    b_t, i, j, M, N, p_row_lse, p_row_weight, p_column_lse, p_column_weight,
    p_row_factor, p_column_factor, p_plan,
):  # fmt: skip
    """G of logits to base 2, as if nothing were left out."""
    i, j = tl.minimum(i, M - 1), tl.minimum(j, N - 1)
    fits, grow = 0.0, 1.0
    if p_plan is not None:
        grow = tl.load(p_plan + 2)
    if p_row_factor is not None:
        fits = tl.load(p_plan + 1)
    if fits != 0 and p_row_factor is not None:  # one exponential an element
        b_factor = tl.load(p_row_factor + i)[:, None] + tl.load(p_column_factor + j)[None, :]
        b_g = tl.exp2(b_t - tl.load(p_plan)) * b_factor
    elif p_column_lse is None:
        b_lse, b_weight = tl.load(p_row_lse + i) * LOG2E, tl.load(p_row_weight + i) * grow
        b_g = tl.exp2(b_t - b_lse[:, None]) * b_weight[:, None]
    else:
        b_lse, b_weight = tl.load(p_column_lse + j) * LOG2E, tl.load(p_column_weight + j) * grow
        b_g = tl.exp2(b_t - b_lse[None, :]) * b_weight[None, :]
        if p_row_lse is not None:
            b_lse, b_weight = tl.load(p_row_lse + i) * LOG2E, tl.load(p_row_weight + i) * grow
            b_g += tl.exp2(b_t - b_lse[:, None]) * b_weight[:, None]
    return b_g
