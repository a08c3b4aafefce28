"""Log-sum-exps of the rows and positive logits, without the logits in memory.

Online softmax over column tiles: the running maximum starts at the lowest float32, exponents are to
base 2 with log2(e) folded into the scale, products accumulate in float32. 2 M N D FLOP and M N
exponentials; reads X once and Y once a row block (from L2), writes 8 bytes a row. Where row blocks
are few, S programs share the column tiles of each, and kernels/lse_parts.py reduces their S partial
results.
"""

# mypy: disable-error-code=no-untyped-def

import triton
import triton.language as tl

from sslfast.kernels.triton_tiles import (
    INFINITY,
    LN2,
    LOG2E,
    LOWEST,
    SIZES,
    chunked_products,
    load_tile,
    masked_tiles,
    nth_tile,
    on_diagonal,
    share,
)


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    p_x, p_y, p_scale, p_lse, p_positive,
    M, N, length, shift, row_base, column_base, self_length,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Log-sum-exp and positive logit of BLOCK_M rows over this program's share of the columns.

    Results are [S, M]: a positive that another program meets is 0 here.
    """
    i_part, parts = tl.program_id(1), tl.num_programs(1)
    i_row = tl.program_id(0) * BLOCK_M
    i = i_row + tl.arange(0, BLOCK_M)
    wrapped = (row_base + length - shift, column_base, shift)
    itself = (row_base, column_base, self_length)
    straight = (row_base, column_base + shift, length - shift)
    i_positive = tl.maximum(on_diagonal(i, wrapped), on_diagonal(i, straight))
    i_self = on_diagonal(i, itself)
    ranges, masked = masked_tiles(i_row, N, wrapped, itself, straight, BLOCK_M, BLOCK_N)
    scale = tl.load(p_scale) * LOG2E

    if D <= BLOCK_D:
        b_x = load_tile(p_x, i_row, M, 0, D, BLOCK_M, BLOCK_D, False, OPERAND)
    b_max = tl.full((BLOCK_M,), LOWEST, tl.float32)
    b_sum = tl.zeros((BLOCK_M,), tl.float32)
    b_positive = tl.zeros((BLOCK_M,), tl.float32)
    for PLAIN in tl.static_range(2):
        begin, end = share(tl.cdiv(N, BLOCK_N) - masked if PLAIN else masked, i_part, parts)
        for n in tl.range(begin, end):
            i_column = nth_tile(n, ranges, not PLAIN) * BLOCK_N
            if D <= BLOCK_D:
                b_y = load_tile(p_y, i_column, N, 0, D, BLOCK_N, BLOCK_D, PLAIN, OPERAND)
                b_t = tl.dot(b_x, tl.trans(b_y), input_precision=PRECISION)
            else:
                b_t = chunked_products(
                    p_x, p_y, i_row, i_column, M, N, D, BLOCK_M, BLOCK_N, BLOCK_D, PLAIN,
                    OPERAND, PRECISION,
                )  # fmt: skip
            b_t *= scale
            if not PLAIN:
                j = (i_column + tl.arange(0, BLOCK_N))[None, :]
                m_positive = j == i_positive[:, None]
                b_positive += tl.sum(tl.where(m_positive, b_t, 0), 1)
                b_t = tl.where(m_positive | (j == i_self[:, None]) | (j >= N), -INFINITY, b_t)
            # The maximum drops a NaN, the sum keeps it.
            b_new = tl.maximum(b_max, tl.max(b_t, 1))
            b_sum = b_sum * tl.exp2(b_max - b_new) + tl.sum(tl.exp2(b_t - b_new[:, None]), 1)
            b_max = b_new

    i_out = i_part * M + i
    tl.store(p_lse + i_out, (b_max + tl.log2(b_sum)) * LN2, mask=i < M)
    b_positive = tl.where(i_positive >= 0, b_positive * LN2, -INFINITY)
    tl.store(p_positive + i_out, b_positive, mask=i < M)
