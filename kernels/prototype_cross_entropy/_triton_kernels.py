"""From scores in memory to losses, entropies, usage and the weights G of the gradients.

A program has a chunk of prototypes and some samples, one after the other. All views of the teacher
stand in registers, so that every score is read once and every softmax formed once, by an
exponential of a score less its row's log-sum-exp; views of the student pass by. Sums over chunks,
and over programs, are left to the caller: there are no atomics. All exponents are to base 2.
"""

# mypy: disable-error-code="no-untyped-def, index"

import triton
import triton.language as tl

from sslfast.kernels.logit_rows import logits_of, row_step
from sslfast.kernels.triton_tiles import LN2, LOG2E, LOWEST, share


@triton.jit
def weighted(b_p, b_log):
    """A logarithm times its probability, 0 where that is 0, also where the logarithm is -inf."""
    return b_p * tl.maximum(b_log, LOWEST, propagate_nan=tl.PropagateNan.ALL)


@triton.jit(do_not_specialize=["G"])
def prototype_kernel(
    p_student, p_student_scale, p_student_lse, p_teacher, p_teacher_scale, p_bias, p_teacher_lse,
    p_pairs, p_factor, p_loss, p_entropy, p_usage, p_out, S, T, G, K,
    TEACHERS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK prototypes of a share of G samples, of which the student has S views, the teacher T.

    Stores partial losses [chunks, S, G] and entropies [chunks, T, G], and sums of the teacher's
    softmaxes ``p_usage`` [shares, K]; and, where ``p_out`` is not None, the weights
    ``p_factor`` (share p - target), which may take the place of the student's scores. Matrices with
    K columns are in ``block_memory``. TEACHERS is a power of 2 and T at least.
    """
    n_chunk, n_share, shares = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    j = n_chunk * BLOCK + tl.arange(0, BLOCK)
    t = tl.arange(0, TEACHERS)
    m_teacher = t < T
    student_scale, teacher_scale = tl.load(p_student_scale), tl.load(p_teacher_scale)
    p_biases = None
    if p_bias is not None:
        p_biases = p_bias + (tl.minimum(t, T - 1).to(tl.int64) * row_step(K))[:, None]
    p_loss += n_chunk * S * G
    p_entropy += n_chunk * T * G

    b_usage = tl.zeros((BLOCK,), tl.float32)
    begin, end = share(G, n_share, shares)
    for g in tl.range(begin, end):
        i_teacher = tl.minimum(t, T - 1) * G + g
        p_rows = p_teacher + (i_teacher.to(tl.int64) * row_step(K))[:, None]
        b_log_q = logits_of(p_rows, teacher_scale, p_biases, None, j[None, :], K)
        b_log_q -= (tl.load(p_teacher_lse + i_teacher) * LOG2E)[:, None]
        b_q = tl.where(m_teacher[:, None], tl.exp2(b_log_q), 0)
        b_entropy = tl.sum(weighted(b_q, b_log_q), 1) * -LN2
        tl.store(p_entropy + i_teacher, b_entropy, mask=m_teacher)
        b_usage += tl.sum(b_q, 0)

        for s in tl.range(S):
            i = s * G + g
            offset = tl.cast(i, tl.int64) * row_step(K)
            b_pairs = tl.load(p_pairs + s * T + t, mask=m_teacher, other=0)
            b_target = tl.sum(b_pairs[:, None] * b_q, 0)
            b_log_p = logits_of(p_student + offset, student_scale, None, None, j, K)
            b_log_p -= tl.load(p_student_lse + i) * LOG2E
            if p_out is not None:
                b_g = tl.sum(b_pairs, 0) * tl.exp2(b_log_p) - b_target
                b_g *= tl.load(p_factor + i)
                b_g = b_g.to(p_out.dtype.element_ty)
                tl.store(p_out + offset + j, b_g, mask=j < row_step(K))
            tl.store(p_loss + i, tl.sum(weighted(b_target, b_log_p), 0) * -LN2)
    p_usage += n_share * row_step(K)
    tl.store(p_usage + j, b_usage, mask=j < row_step(K))
