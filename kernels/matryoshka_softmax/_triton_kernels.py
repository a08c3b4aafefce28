"""One tile of logits a program, of every prefix after the other: its statistics, or its weights.

The inner products of a prefix are added to those of the one before it, which stay in registers, so
that X and Y come from L2 once for all prefixes. What leaves are partial log-sum-exps of the tile's
rows and columns, or weights W_p = a_p G_p b_p in the operands' 16 bits and partial sums of G_p c_p.

For float32, where cuBLAS has the faster product, inner products of all prefixes are read from
memory, the last prefix first, and sums of the weights of it and those after it take their place:
the features that a prefix adds to the one before it are multiplied by that sum.
"""

# mypy: disable-error-code="no-untyped-def, index"

import triton
import triton.language as tl

from sslfast.kernels.triton_softmax import diagonals, needs_masks, tile_statistics, weights
from sslfast.kernels.triton_tiles import (
    LOG2E,
    SIZES,
    add_products,
    block_memory,
    nth_block,
    on_diagonal,
)


@triton.jit
def inner_products(
    b_s, p_x, p_y, p_logits, i, j, M, N, p: tl.constexpr, ENDS: tl.constexpr,
    BLOCK_D: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    """Those of prefix p, from memory or from b_s, those of the prefix before it."""
    if p_logits is not None:
        p_logits, m = block_memory(block_of(p_logits, p, M, N), i, j, M, N)
        return tl.load(p_logits, mask=m, other=0)
    else:  # noqa: RET505 - Triton takes one branch only
        D: tl.constexpr = ENDS[len(ENDS) - 1]
        BEGIN: tl.constexpr = 0 if p == 0 else ENDS[p - 1]
        SIZE: tl.constexpr = ENDS[p] - BEGIN
        # The largest power of two that divides it: no chunk needs a mask.
        POWER: tl.constexpr = SIZE & -SIZE
        STEP: tl.constexpr = POWER if POWER < BLOCK_D else BLOCK_D
        i, j = tl.minimum(i, M - 1), tl.minimum(j, N - 1)
        return add_products(b_s, p_x, p_y, i, j, BEGIN, ENDS[p], D, STEP, OPERAND)


@triton.jit
def block_of(p_block, p: tl.constexpr, M, N):
    """The memory of prefix p in that of all, [K, M, N]."""
    return p_block + p * tl.cast(M, tl.int64) * (tl.cdiv(N, 64) * 64)


@triton.jit
def place(
    n_row, n_column, M, N, wrapped, straight, itself,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Rows and columns of a tile, and whether some of its elements do not count like the others."""
    i_row, i_column = n_row * BLOCK_M, n_column * BLOCK_N
    masked = needs_masks(i_row, i_column, M, N, wrapped, straight, itself, BLOCK_M, BLOCK_N, False)
    return i_row + tl.arange(0, BLOCK_M), i_column + tl.arange(0, BLOCK_N), masked


@triton.jit(do_not_specialize=SIZES)
def statistics_kernel(
    p_x, p_y, p_logits, p_scale, p_a, p_b, p_row_lse, p_column_lse, p_positive,
    M, N, length, shift, row_base, column_base, self_length,
    ENDS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    OPERAND: tl.constexpr,
):  # fmt: skip
    """Partial log-sum-exps of a tile's rows [C, K, M] and columns [R, K, N], of R x C tiles.

    The column statistics may be None. ``p_positive`` [K, M] gets the positives that are met.
    """
    K: tl.constexpr = len(ENDS)
    n_row, n_column = nth_block(tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N))
    wrapped, straight, itself = diagonals(length, shift, row_base, column_base, self_length)
    i, j, masked = place(n_row, n_column, M, N, wrapped, straight, itself, BLOCK_M, BLOCK_N)
    scale = tl.load(p_scale) * LOG2E
    b_s = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for p in tl.static_range(K):
        b_s = inner_products(b_s, p_x, p_y, p_logits, i, j, M, N, p, ENDS, BLOCK_D, OPERAND)
        b_a = tl.load(p_a + p * M + i, mask=i < M, other=0) * scale
        b_b = tl.load(p_b + p * N + j, mask=j < N, other=0)
        p_columns = p_column_lse
        if p_column_lse is not None:
            p_columns += (n_row * K + p) * N
        tile_statistics(
            b_s * b_a[:, None] * b_b[None, :], masked, i, n_column * BLOCK_N, M, N,
            p_row_lse + (n_column * K + p) * M, p_columns, p_positive + p * M,
            wrapped, straight, itself, BLOCK_M, BLOCK_N, False,
        )  # fmt: skip


@triton.jit(do_not_specialize=SIZES)
def weights_kernel(
    p_x, p_y, p_logits, p_scale, p_row, p_column, p_positive, p_growth, p_w, p_inner,
    p_column_inner, M, N, length, shift, row_base, column_base, self_length,
    ENDS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    OPERAND: tl.constexpr, OF_ROW: tl.constexpr, OF_COLUMN: tl.constexpr,
):  # fmt: skip
    """Weights [K, M, N] of a tile times the growth, and partial sums of G c [C, K, M], [R, K, N].

    Rows have (a, lse, g), or with OF_ROW = 1 only a, [K, OF_ROW, M]; columns likewise. Growth and
    the sums of columns may be None. Where ``p_logits`` is not, it is ``p_w``, and what is stored
    are the sums of the weights of a prefix and of those after it.
    """
    K: tl.constexpr = len(ENDS)
    n_row, n_column = nth_block(tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N))
    wrapped, straight, itself = diagonals(length, shift, row_base, column_base, self_length)
    i, j, masked = place(n_row, n_column, M, N, wrapped, straight, itself, BLOCK_M, BLOCK_N)
    scale = tl.load(p_scale) * LOG2E
    grow = 1.0
    if p_growth is not None:
        grow = tl.load(p_growth)
    b_s = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    b_total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    FIRST: tl.constexpr = 0 if p_logits is None else K - 1
    END: tl.constexpr = K if p_logits is None else -1
    STEP: tl.constexpr = 1 if p_logits is None else -1
    for p in tl.static_range(FIRST, END, STEP):
        tl.debug_barrier()  # or what is loaded of all prefixes at once spills registers
        b_s = inner_products(b_s, p_x, p_y, p_logits, i, j, M, N, p, ENDS, BLOCK_D, OPERAND)
        p_a, p_b = p_row + p * OF_ROW * M, p_column + p * OF_COLUMN * N
        b_a, b_b = tl.load(p_a + tl.minimum(i, M - 1)), tl.load(p_b + tl.minimum(j, N - 1))
        b_t = b_s * (b_a * scale)[:, None] * b_b[None, :]
        b_w = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        if OF_ROW == 3:
            b_w += weights(b_t, i, j, M, N, p_a + M, p_a + 2 * M, None, None, None, None, None)
        if OF_COLUMN == 3:
            b_w += weights(b_t, i, j, M, N, None, None, p_b + N, p_b + 2 * N, None, None, None)
        if masked:
            m_here = (i < M)[:, None] & (j < N)[None, :]
            b_s = tl.where(m_here, b_s, 0)  # memory beyond the columns holds anything
            i_positive = tl.maximum(on_diagonal(i, wrapped), on_diagonal(i, straight))
            b_positive = tl.load(p_positive + p * M + i, mask=i < M, other=0)
            m_here &= j[None, :] != on_diagonal(i, itself)[:, None]
            b_w = tl.where(m_here, b_w, 0)
            b_w = tl.where(j[None, :] == i_positive[:, None], b_positive[:, None], b_w)
        b_w *= b_a[:, None] * b_b[None, :]
        b_product = b_w * b_s
        tl.store(p_inner + (n_column * K + p) * M + i, tl.sum(b_product, 1), mask=i < M)
        if p_column_inner is not None:
            p_sums = p_column_inner + (n_row * K + p) * N
            tl.store(p_sums + j, tl.sum(b_product, 0), mask=j < N)
        if p_logits is not None:
            b_total += b_w
            b_w = b_total
        p_tile, m_tile = block_memory(block_of(p_w, p, M, N), i, j, M, N)
        tl.store(p_tile, (b_w * grow).to(p_w.dtype.element_ty), mask=m_tile)
