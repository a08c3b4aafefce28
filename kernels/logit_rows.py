"""Log-sum-exps of rows of logits that lie in memory, and how kernels read such rows.

4 bytes of memory traffic a logit. S programs share a row where rows are few; kernels/lse_parts.py
joins their results. All exponents are to base 2; so is ``softcap``, None for none. A logit is a
product times ``scale``, where there is one, and plus a bias.
"""

# mypy: disable-error-code="no-untyped-def, index"

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from sslfast.kernels.lse_parts import merged, merged_lse
from sslfast.kernels.tiles import multiprocessors, splits
from sslfast.kernels.triton_tiles import INFINITY, LN2, LOG2E, LOWEST, share

CONSTANTS = {"BLOCK": 4096}
OPTIONS = {"num_warps": 8, "enable_fp_fusion": True}
RESIDENT = 8  # programs of such kernels that a multiprocessor runs at a time


@triton.jit
def softcapped(b_t, cap):
    """Cap tanh(b_t / cap); near 0 by a Pade approximant, where 1 - u would cancel."""
    b_x = b_t / cap
    b_size, b_q = tl.abs(b_x), b_x * b_x
    b_u = tl.exp2(b_size * (-2 * LOG2E))
    m_small = b_size < 0.75
    b_above = tl.where(m_small, b_size * (945 + b_q * (105 + b_q)), 1 - b_u)
    b_below = tl.where(m_small, 945 + b_q * (420 + b_q * 15), 1 + b_u)
    b_tanh = b_above / b_below
    return cap * tl.where(b_x < 0, -b_tanh, b_tanh)


@triton.jit
def row_step(N):
    """How far apart the rows of ``block_memory`` lie (kernels/products.py)."""
    return tl.cdiv(N, 64) * 64


@triton.jit
def logits_of(p_logits, scale, p_bias, softcap, j, N):
    """Logits at classes j of one row, to base 2, -inf for those that are none.

    What lies behind a row, and behind the bias, is read, so that vectors are full, and not used.
    """
    m_there, m_class = j < row_step(N), j < N
    b_t = tl.load(p_logits + j, mask=m_there, other=0)
    if scale is not None:
        b_t *= scale
    if p_bias is not None:
        b_t += tl.load(p_bias + j, mask=m_there, other=0).to(tl.float32)
    b_t *= LOG2E
    if softcap is not None:
        b_t = softcapped(b_t, softcap)
    return tl.where(m_class, b_t, -INFINITY)


@triton.jit(do_not_specialize=["M", "same"])
def logits_kernel(
    p_logits, p_scale, p_bias, p_targets, p_lse, p_target_logit, softcap, M, N, same,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Partial log-sum-exp over the other classes and target's logit [S, M] of one row.

    Over all classes where ``p_targets`` is None. ``same`` rows in turn have the same bias.
    """
    i, i_part, parts = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    p_logits += tl.cast(i, tl.int64) * row_step(N)
    scale = None if p_scale is None else tl.load(p_scale)
    if p_bias is not None:
        p_bias += (i // same).to(tl.int64) * row_step(N)
    if p_targets is not None:
        i_target = tl.load(p_targets + i).to(tl.int32)
    highest = tl.full((), LOWEST, tl.float32)
    total = tl.zeros((), tl.float32)
    target = tl.zeros((), tl.float32)
    begin, end = share(tl.cdiv(N, BLOCK), i_part, parts)
    for n in tl.range(begin, end):
        j = n * BLOCK + tl.arange(0, BLOCK)
        b_t = logits_of(p_logits, scale, p_bias, softcap, j, N)
        if p_targets is not None:
            target += tl.sum(tl.where(j == i_target, b_t, 0), 0)
            b_t = tl.where(j == i_target, -INFINITY, b_t)
        # The maximum drops a NaN, the sum keeps it.
        new = tl.maximum(highest, tl.max(b_t, 0))
        total = total * tl.exp2(highest - new) + tl.sum(tl.exp2(b_t - new), 0)
        highest = new
    tl.store(p_lse + i_part * M + i, (highest + tl.log2(total)) * LN2)
    if p_targets is not None:
        tl.store(p_target_logit + i_part * M + i, target * LN2)


def full(bias: Tensor | None) -> Tensor | None:
    """A bias as kernels read it: as long as a row of ``block_memory``."""
    return None if bias is None else F.pad(bias, (0, -bias.shape[-1] % 64)).contiguous()


def row_statistics(
    logits: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    targets: Tensor | None,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """Log-sum-exps over the classes that are no target, and the targets' logits, both [M].

    Args:
        logits: float32 [M, N] in ``block_memory``.
        scale: 0-d, of the logits, or None.
        bias: added to them, ``full``, or None: one of N for all rows, or [V, N], each for M / V
            rows in turn.
        targets: int64 [M], -1 where no class is a target; None: nowhere, and no logits of targets.
        softcap: to base 2, or None.
    """
    m, n = logits.shape
    same = m if bias is None or bias.dim() == 1 else max(m // len(bias), 1)
    parts = splits(m, triton.cdiv(n, CONSTANTS["BLOCK"]), RESIDENT * multiprocessors(logits.device))
    lse = logits.new_empty(parts, m)
    target_logit = None if targets is None else torch.empty_like(lse)
    with torch.cuda.device_of(logits):
        logits_kernel[(m, parts)](
            logits,
            scale,
            bias,
            targets,
            lse,
            target_logit,
            softcap,
            m,
            n,
            same,
            **CONSTANTS,
            **OPTIONS,
        )
        if target_logit is None:
            return merged_lse(lse), logits.new_empty(0)
        return merged(lse, target_logit)
