"""Losses and gradients of one side, without the logits in memory.

A pair costs log(1 + e^c), where c is the logit t of a negative and -t of a positive; the gradient
of that is 1 / (1 + e^-c). Both come from one exponential, e = 2^-|c| with c to base 2, which cannot
overflow and keeps the relative precision of tiny probabilities:

    cost = max(c, 0) + log2(1 + e),   probability = 1 / (1 + e) or, for c < 0, e / (1 + e),

with log2(1 + e) = e P(e), P a polynomial. Nothing depends on a normaliser, so rows give their
losses, gradients and the bias's in one pass: 4 M N D FLOP while D fits one accumulator (else t is
recomputed for each BLOCK_U features), M N exponentials and M N reciprocal roots; columns may
share a logarithm. The gradient of the columns is the transposed problem, where the weights belong
to the columns: 4 M N D more. No atomics; reads X once and Y once a row block (from L2), writes U
once. Where row blocks are few, S programs share the columns of each (split-K) and write S partial
results, to be reduced in a deterministic order.
"""

# mypy: disable-error-code="no-untyped-def, index"

import triton
import triton.language as tl

from sslfast.kernels.growth import UNDO_ROOM
from sslfast.kernels.triton_tiles import (
    INFINITY,
    LN2,
    LOG2E,
    chunked_products,
    load_tile,
    masked_tiles,
    nth_tile,
    on_diagonal,
    share,
)

SIZES = ["M", "N", "length", "shift", "row_base", "column_base"]


@triton.jit
def log2_of_one_plus(e):
    """log2(1 + e) for 0 <= e <= 1, to 2e-7 of itself: relative minimax fit of log2(1 + e) / e."""
    p = 0.007549168549982023
    p = p * e - 0.04256700729798499
    p = p * e + 0.11285610359811493
    p = p * e - 0.19711889270134164
    p = p * e + 0.27564137503205993
    p = p * e - 0.35840846253198677
    p = p * e + 0.4806929559681795
    p = p * e - 0.721340207930683
    p = p * e + 1.4426949974332537
    return p * e


@triton.jit
def combined(pair):
    """(1 + a) (1 + b) - 1, and nothing of a small a or b is lost."""
    a, b = pair
    return a * b + (a + b)


@triton.jit
def added_losses(c, e, SHARED: tl.constexpr):
    """Sum of max(c, 0) + log2(1 + e) over the columns of a tile, for 0 <= e <= 1.

    A sum of logarithms is the logarithm of a product: with SHARED, up to 64 columns have one. They
    are those that a thread holds in the accumulators of Hopper's tensor cores: no element moves.
    """
    if not SHARED:
        return tl.sum(tl.maximum(c, 0) + log2_of_one_plus(e), 1)
    M: tl.constexpr = e.shape[0]
    for _ in tl.static_range(5):
        if e.shape[1] > 8:
            e = combined(tl.split(tl.permute(e.reshape(M, 2, e.shape[1] // 2), (0, 2, 1))))
    t = combined(tl.split(e.reshape(M, e.shape[1] // 2, 2)))
    logarithms = tl.where(t < 1, log2_of_one_plus(tl.minimum(t, 1)), tl.log2(1 + t))
    return tl.sum(tl.maximum(c, 0), 1) + tl.sum(logarithms, 1)


@triton.jit(do_not_specialize=SIZES)
def contrast_kernel(
    p_x, p_y, p_scale, p_bias, p_row_weight, p_column_weight, p_growth, p_loss, p_u, p_d_bias,
    M, N, length, shift, row_base, column_base,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_U: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """What is not None of loss [S, M], U [S, M, D], d_bias [S, M] for BLOCK_M rows.

    With U go weights of the rows or of the columns; ``p_growth`` scales those of columns.
    """
    GRADIENT: tl.constexpr = p_u is not None
    ROW: tl.constexpr = p_row_weight is not None
    i_row = tl.program_id(0) * BLOCK_M
    k_first = tl.program_id(1) * BLOCK_U
    i_part, parts = tl.program_id(2), tl.num_programs(2)
    i = i_row + tl.arange(0, BLOCK_M)
    wrapped = (row_base + length - shift, column_base, shift)
    straight = (row_base, column_base + shift, length - shift)
    i_positive = tl.maximum(on_diagonal(i, wrapped), on_diagonal(i, straight))
    nobody = (row_base, column_base, 0)
    ranges, masked = masked_tiles(i_row, N, wrapped, nobody, straight, BLOCK_M, BLOCK_N)
    scale, bias = tl.load(p_scale) * LOG2E, tl.load(p_bias) * LOG2E
    least = 1.0  # probabilities lie in [0, 1 / least]
    if ROW:
        least = UNDO_ROOM
    grow = 1.0
    if p_growth is not None:
        grow = tl.load(p_growth)

    if D <= BLOCK_D:
        b_x = load_tile(p_x, i_row, M, 0, D, BLOCK_M, BLOCK_D, False, OPERAND)
    b_loss = tl.zeros((BLOCK_M,), tl.float32)
    b_d_bias = tl.zeros((BLOCK_M,), tl.float32)
    if GRADIENT:
        b_u = tl.zeros((BLOCK_M, BLOCK_U), tl.float32)
    for PLAIN in tl.static_range(2):
        begin, end = share(tl.cdiv(N, BLOCK_N) - masked if PLAIN else masked, i_part, parts)
        for n in tl.range(begin, end):
            i_column = nth_tile(n, ranges, not PLAIN) * BLOCK_N
            j = i_column + tl.arange(0, BLOCK_N)
            m_column = None if PLAIN else j < N
            if D > BLOCK_D:
                b_c = chunked_products(
                    p_x, p_y, i_row, i_column, M, N, D, BLOCK_M, BLOCK_N, BLOCK_D, PLAIN,
                    OPERAND, PRECISION,
                )  # fmt: skip
            if GRADIENT or D <= BLOCK_D:
                b_y = load_tile(p_y, i_column, N, k_first, D, BLOCK_N, BLOCK_U, PLAIN, OPERAND)
            if D <= BLOCK_D:
                b_c = tl.dot(b_x, tl.trans(b_y), input_precision=PRECISION)
            b_c = b_c * scale + bias
            if not PLAIN:
                m_positive = j[None, :] == i_positive[:, None]
                b_c = tl.where(m_column[None, :], tl.where(m_positive, -b_c, b_c), -INFINITY)
            b_e = tl.exp2(-tl.abs(b_c))
            if p_loss is not None:
                b_loss += added_losses(b_c, b_e, SHARED)
            if GRADIENT:
                # A division takes twice the instructions, and the interpreter has no reciprocal.
                b_root = tl.rsqrt(b_e * least + least)
                b_p = b_root * b_root
                b_p = tl.where(b_c >= 0, b_p, b_e * b_p)
                if not ROW:
                    b_p *= (tl.load(p_column_weight + j, mask=m_column) * grow)[None, :]
                if not PLAIN:
                    b_p = tl.where(m_column[None, :], tl.where(m_positive, -b_p, b_p), 0)
                if p_d_bias is not None:
                    b_d_bias += tl.sum(b_p, 1)
                b_u = tl.dot(b_p.to(OPERAND), b_y, b_u, input_precision=PRECISION)

    i_out = i_part * M + i
    m_out = i < tl.where(k_first == 0, M, 0)
    if p_loss is not None:
        tl.store(p_loss + i_out, b_loss * LN2, mask=m_out)
    if ROW:
        b_weight = tl.load(p_row_weight + i, mask=i < M, other=0) * UNDO_ROOM
        b_u *= b_weight[:, None]
        tl.store(p_d_bias + i_out, b_d_bias * b_weight, mask=m_out)
    if p_growth is not None:
        b_u *= tl.load(p_growth + 1)
    if GRADIENT:
        k = k_first + tl.arange(0, BLOCK_U)[None, :]
        p_u += (tl.cast(i_part, tl.int64) * M + i_row) * D + tl.arange(0, BLOCK_M)[:, None] * D + k
        tl.store(p_u, b_u, mask=(i < M)[:, None] & (k < D))
