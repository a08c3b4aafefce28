"""Log-sum-exps without the logits in memory; and, where gradients follow, from logits in memory.

``classifier_kernel`` is the similarity softmax's forward with a target's index a row and a bias:
2 N V D FLOP and N V exponentials, reads the weights once a row block (from L2), writes 8 bytes a
row. Gradients need every logit twice, so there a block of logits lies in memory, of which
kernels/logit_rows.py has the log-sum-exps: ``weigh_kernel`` turns it into the weights G of the two
products (reads 4 bytes a logit, writes 2 or 4). All exponents are to base 2; so is ``softcap``,
None for none. S programs share the classes of a row where rows are few; partial log-sum-exps are
reduced by kernels/lse_parts.py.
"""

# mypy: disable-error-code="no-untyped-def, index"

import triton
import triton.language as tl

from sslfast.kernels.logit_rows import logits_of, row_step, softcapped
from sslfast.kernels.triton_tiles import (
    INFINITY,
    LN2,
    LOG2E,
    LOWEST,
    chunked_products,
    load_tile,
    share,
)


@triton.jit(do_not_specialize=["M"])
def classifier_kernel(
    p_x, p_w, p_bias, p_targets, p_lse, p_target_logit, softcap, M, N,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Partial log-sum-exps over the other classes and targets' logits [S, M] of BLOCK_M rows."""
    i_part, parts = tl.program_id(1), tl.num_programs(1)
    i_row = tl.program_id(0) * BLOCK_M
    i = i_row + tl.arange(0, BLOCK_M)
    i_target = tl.load(p_targets + i, mask=i < M, other=-1).to(tl.int32)
    full = N // BLOCK_N  # tiles that need no mask; the last one comes first

    if D <= BLOCK_D:
        b_x = load_tile(p_x, i_row, M, 0, D, BLOCK_M, BLOCK_D, False, OPERAND)
    b_max = tl.full((BLOCK_M,), LOWEST, tl.float32)
    b_sum = tl.zeros((BLOCK_M,), tl.float32)
    b_target = tl.zeros((BLOCK_M,), tl.float32)
    for PLAIN in tl.static_range(2):
        begin, end = share(full if PLAIN else tl.cdiv(N, BLOCK_N) - full, i_part, parts)
        for n in tl.range(begin, end):
            i_class = (n if PLAIN else full) * BLOCK_N
            j = i_class + tl.arange(0, BLOCK_N)
            if D <= BLOCK_D:
                b_w = load_tile(p_w, i_class, N, 0, D, BLOCK_N, BLOCK_D, PLAIN, OPERAND)
                b_t = tl.dot(b_x, tl.trans(b_w), input_precision=PRECISION)
            else:
                b_t = chunked_products(
                    p_x, p_w, i_row, i_class, M, N, D, BLOCK_M, BLOCK_N, BLOCK_D, PLAIN,
                    OPERAND, PRECISION,
                )  # fmt: skip
            b_t *= LOG2E
            if p_bias is not None:
                b_bias = tl.load(p_bias + j, mask=None if PLAIN else j < N).to(tl.float32)
                b_t += (b_bias * LOG2E)[None, :]
            if softcap is not None:
                b_t = softcapped(b_t, softcap)
            m_target = j[None, :] == i_target[:, None]
            b_target += tl.sum(tl.where(m_target, b_t, 0), 1)
            m_out = m_target if PLAIN else m_target | (j >= N)[None, :]
            b_t = tl.where(m_out, -INFINITY, b_t)
            # The maximum drops a NaN, the sum keeps it.
            b_new = tl.maximum(b_max, tl.max(b_t, 1))
            b_sum = b_sum * tl.exp2(b_max - b_new) + tl.sum(tl.exp2(b_t - b_new[:, None]), 1)
            b_max = b_new

    i_out = i_part * M + i
    tl.store(p_lse + i_out, (b_max + tl.log2(b_sum)) * LN2, mask=i < M)
    tl.store(p_target_logit + i_out, b_target * LN2, mask=i < M)


@triton.jit
def weigh_kernel(
    p_logits, p_bias, p_targets, p_lse, p_target_logit, p_row_weight, p_growth, p_out,
    smoothing, uniform, softcap, N, BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK weights G of one row; ``p_out`` may be ``p_logits``, uniform is smoothing / V."""
    i = tl.program_id(0)
    i_target = tl.load(p_targets + i).to(tl.int32)
    lse, target = tl.load(p_lse + i) * LOG2E, tl.load(p_target_logit + i) * LOG2E
    weight = tl.load(p_row_weight + i)
    if p_growth is not None:
        weight *= tl.load(p_growth)
    high = tl.maximum(lse, target, propagate_nan=tl.PropagateNan.ALL)
    whole = high + tl.log2(1 + tl.exp2(tl.minimum(lse, target) - high))
    other = 1 / (1 + tl.exp2(target - lse))  # 1 - p without cancellation: p may be close to 1

    j = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    offset = tl.cast(i, tl.int64) * row_step(N)
    b_t = logits_of(p_logits + offset, None, p_bias, softcap, j, N)
    b_g = tl.exp2(b_t - whole) - uniform
    b_g = tl.where(j == i_target, smoothing - uniform - other, b_g) * weight
    if softcap is not None:
        b_x = b_t / softcap
        b_g *= 1 - b_x * b_x
    tl.store(p_out + offset + j, b_g.to(p_out.dtype.element_ty), mask=j < row_step(N))
