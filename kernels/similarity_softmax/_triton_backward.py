"""U = G Y with G_ij = g_i 2^(t_ij - a_i) + h_j 2^(t_ij - b_j), without t or G in memory.

Exponents are to base 2: t, a and b are logits and log-sum-exps times log2(e). Both products, for t
and for U, come from one tile: 4 M N D FLOP while D fits one accumulator (else t is recomputed for
each BLOCK_U features of U), M N or 2 M N exponentials, no atomics; reads X once and Y once a row
block (from L2), writes U once. Where row blocks are few, S programs share the column tiles of each
(split-K) and write S partial results of U, to be reduced in a deterministic order.

Two exponentials an element are right for any data, since both powers are at most 1, but take as
long as the products at D = 128. One is enough in the form

    G_ij = 2^(t_ij - c) (g_i 2^(c - a_i) + h_j 2^(c - b_j)),   c midway between all a and b,

as long as the a and b lie within SPREAD of one another, however large t is: t_ij <= a_i and b_j, so
no power exceeds 2^80, and one that underflows (below 2^-126) stood for a probability below 2^-46.
``plan_kernel`` measures the spread, and ``backward_kernel`` takes one loop or the other on the
device. Unit rows always fit at temperatures from about 0.02 up, and ordinary ones far below.

Weights enter the second product in the operands' dtype. ``plan_kernel`` scales g and h by the power
of two that brings the largest to the top of the range of fp16, and the sum is scaled back: G_ij
down to 2^-27 of the largest keep full precision there, and smaller ones err by 2^-38 of it. Where
only the rows have statistics, g_i is applied after the sum, to scaled probabilities.
"""

# mypy: disable-error-code="no-untyped-def, index"

import triton
import triton.language as tl

from sslfast.kernels.growth import ROOM, UNDO_ROOM, growth
from sslfast.kernels.triton_tiles import (
    INFINITY,
    LOG2E,
    SIZES,
    chunked_products,
    load_tile,
    masked_tiles,
    nth_tile,
    on_diagonal,
    share,
)

SPREAD = tl.constexpr(160.0)


@triton.jit
def _extremes(p_lse, p_weight, count, b_low, b_high, b_top, BLOCK: tl.constexpr):
    """Smallest and largest finite statistic, largest finite |weight|, lane by lane."""
    for first in tl.range(0, count, BLOCK):
        i = first + tl.arange(0, BLOCK)
        b_lse = tl.load(p_lse + i, mask=i < count, other=INFINITY)
        b_weight = tl.abs(tl.load(p_weight + i, mask=i < count, other=0))
        m_finite = tl.abs(b_lse) < INFINITY
        b_low = tl.where(m_finite, tl.minimum(b_low, b_lse), b_low)
        b_high = tl.where(m_finite, tl.maximum(b_high, b_lse), b_high)
        b_top = tl.where(b_weight < INFINITY, tl.maximum(b_top, b_weight), b_top)
    return b_low, b_high, b_top


@triton.jit
def _store_factors(p_lse, p_weight, p_factor, i, count, center, grow):
    b_lse = tl.load(p_lse + i, mask=i < count, other=0) * LOG2E
    b_weight = tl.load(p_weight + i, mask=i < count, other=0) * grow
    tl.store(p_factor + i, b_weight * tl.exp2(center - b_lse), mask=i < count)


@triton.jit(do_not_specialize=SIZES)
def plan_kernel(
    p_row_lse, p_row_weight, p_column_lse, p_column_weight,
    p_row_factor, p_column_factor, p_plan, M, N, BLOCK: tl.constexpr,
):  # fmt: skip
    """Factors g_i 2^(c - a_i) and h_j 2^(c - b_j), and the plan (c, fits, growth, 1 / growth).

    Every program reads all statistics, 16 bytes a row, and writes BLOCK factors a side.
    """
    b_low = tl.full((BLOCK,), INFINITY, tl.float32)
    b_high = tl.full((BLOCK,), -INFINITY, tl.float32)
    b_top = tl.zeros((BLOCK,), tl.float32)
    if p_row_lse is not None:
        b_low, b_high, b_top = _extremes(p_row_lse, p_row_weight, M, b_low, b_high, b_top, BLOCK)
    b_low, b_high, b_top = _extremes(p_column_lse, p_column_weight, N, b_low, b_high, b_top, BLOCK)
    low, high, top = tl.min(b_low, 0), tl.max(b_high, 0), tl.max(b_top, 0)
    spread = (high - low) * LOG2E
    center = tl.where(low <= high, (0.5 * low + 0.5 * high) * LOG2E, 0.0)
    grow, shrink = growth(top)  # |g_i| + |h_j| ends below 2^(ROOM + 1)

    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if p_row_lse is not None:
        _store_factors(p_row_lse, p_row_weight, p_row_factor, i, M, center, grow)
    _store_factors(p_column_lse, p_column_weight, p_column_factor, i, N, center, grow)
    if tl.program_id(0) == 0:
        tl.store(p_plan, center)
        tl.store(p_plan + 1, tl.where(spread <= SPREAD, 1.0, 0.0))
        tl.store(p_plan + 2, grow)
        tl.store(p_plan + 3, shrink)


@triton.jit(do_not_specialize=SIZES)
def backward_kernel(
    p_x, p_y, p_scale, p_row_lse, p_row_weight, p_column_lse, p_column_weight,
    p_row_factor, p_column_factor, p_plan, p_u,
    M, N, length, shift, row_base, column_base, self_length,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_U: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """BLOCK_U features of the gradient of BLOCK_M rows, from a share of the columns; U [S, M, D].

    Statistics of either side may be None; ``p_plan`` is None for float32, which needs no scaling.
    """
    ROW: tl.constexpr = p_row_lse is not None
    COLUMN: tl.constexpr = p_column_lse is not None
    PLANNED: tl.constexpr = p_plan is not None
    FORMS: tl.constexpr = 2 if PLANNED and ROW else 1
    i_row = tl.program_id(0) * BLOCK_M
    k_first = tl.program_id(1) * BLOCK_U
    i_part, parts = tl.program_id(2), tl.num_programs(2)
    i = i_row + tl.arange(0, BLOCK_M)
    wrapped = (row_base + length - shift, column_base, shift)
    itself = (row_base, column_base, self_length)
    straight = (row_base, column_base + shift, length - shift)
    i_positive = tl.maximum(on_diagonal(i, wrapped), on_diagonal(i, straight))
    i_self = on_diagonal(i, itself)
    ranges, masked = masked_tiles(i_row, N, wrapped, itself, straight, BLOCK_M, BLOCK_N)
    scale = tl.load(p_scale) * LOG2E

    fits, grow = 0.0, 1.0
    if PLANNED:
        grow = tl.load(p_plan + 2)
    if FORMS == 2:
        center, fits = tl.load(p_plan), tl.load(p_plan + 1)
        b_row_factor = tl.load(p_row_factor + i, mask=i < M)
    if ROW:
        b_row_lse = tl.load(p_row_lse + i, mask=i < M) * LOG2E
        b_row_weight = tl.load(p_row_weight + i, mask=i < M) * grow

    if D <= BLOCK_D:
        b_x = load_tile(p_x, i_row, M, 0, D, BLOCK_M, BLOCK_D, False, OPERAND)
    b_u = tl.zeros((BLOCK_M, BLOCK_U), tl.float32)
    for FACTORED in tl.static_range(FORMS):  # one exponential an element, or two
        if fits == FACTORED:
            for PLAIN in tl.static_range(2):
                tiles = tl.cdiv(N, BLOCK_N) - masked if PLAIN else masked
                begin, end = share(tiles, i_part, parts)
                for n in tl.range(begin, end):
                    i_column = nth_tile(n, ranges, not PLAIN) * BLOCK_N
                    j = i_column + tl.arange(0, BLOCK_N)
                    m_column = None if PLAIN else j < N
                    if D > BLOCK_D:
                        b_t = chunked_products(
                            p_x, p_y, i_row, i_column, M, N, D, BLOCK_M, BLOCK_N, BLOCK_D, PLAIN,
                            OPERAND, PRECISION,
                        )  # fmt: skip
                    b_y = load_tile(p_y, i_column, N, k_first, D, BLOCK_N, BLOCK_U, PLAIN, OPERAND)
                    if D <= BLOCK_D:
                        b_t = tl.dot(b_x, tl.trans(b_y), input_precision=PRECISION)
                    b_t *= scale
                    if FACTORED:
                        b_factor = tl.load(p_column_factor + j, mask=m_column)
                        b_g = tl.exp2(b_t - center) * (b_row_factor[:, None] + b_factor[None, :])
                    elif not COLUMN:
                        b_g = tl.exp2(b_t - (b_row_lse - ROOM)[:, None])
                    else:
                        b_lse = tl.load(p_column_lse + j, mask=m_column) * LOG2E
                        b_weight = tl.load(p_column_weight + j, mask=m_column) * grow
                        b_g = tl.exp2(b_t - b_lse[None, :]) * b_weight[None, :]
                        if ROW:
                            b_g += tl.exp2(b_t - b_row_lse[:, None]) * b_row_weight[:, None]
                    if not PLAIN:
                        m_in = (j[None, :] != i_positive[:, None]) & (j[None, :] != i_self[:, None])
                        b_g = tl.where(m_in & m_column[None, :], b_g, 0)
                    b_u = tl.dot(b_g.to(OPERAND), b_y, b_u, input_precision=PRECISION)

    if PLANNED:
        b_u *= tl.load(p_plan + 3)
    elif not COLUMN:
        b_u *= (b_row_weight * UNDO_ROOM)[:, None]
    k = k_first + tl.arange(0, BLOCK_U)[None, :]
    p_u += (tl.cast(i_part, tl.int64) * M + i_row) * D + tl.arange(0, BLOCK_M)[:, None] * D + k
    tl.store(p_u, b_u, mask=(i < M)[:, None] & (k < D))
