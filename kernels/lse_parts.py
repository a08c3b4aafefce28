"""Log-sum-exps of parts that were summed apart, joined in a deterministic order."""

# mypy: disable-error-code=no-untyped-def

import torch
import triton
import triton.language as tl
from torch import Tensor

from sslfast.kernels.triton_tiles import INFINITY, LN2, LOG2E, LOWEST

_CONSTANTS = {"BLOCK_M": 32, "BLOCK_S": 32}
_OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}


@triton.jit(do_not_specialize=["M", "parts"])
def merge_kernel(
    p_part_lse, p_part_positive, p_lse, p_positive, M, parts,
    BLOCK_M: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Log-sum-exps [M] from parts [S, M], positives from partial sums, in a deterministic order.

    Both pointers of positives may be None.
    """
    i = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    b_max = tl.full((BLOCK_M,), LOWEST, tl.float32)
    b_sum = tl.zeros((BLOCK_M,), tl.float32)
    b_positive = tl.zeros((BLOCK_M,), tl.float32)
    for first in tl.range(0, parts, BLOCK_S):
        s = first + tl.arange(0, BLOCK_S)[:, None]
        m = (s < parts) & (i < M)[None, :]
        b_lse = tl.load(p_part_lse + s * M + i[None, :], mask=m, other=-INFINITY) * LOG2E
        b_new = tl.maximum(b_max, tl.max(b_lse, 0))
        b_sum = b_sum * tl.exp2(b_max - b_new) + tl.sum(tl.exp2(b_lse - b_new[None, :]), 0)
        b_max = b_new
        if p_positive is not None:
            b_positive += tl.sum(tl.load(p_part_positive + s * M + i[None, :], mask=m, other=0), 0)
    tl.store(p_lse + i, (b_max + tl.log2(b_sum)) * LN2, mask=i < M)
    if p_positive is not None:
        tl.store(p_positive + i, b_positive, mask=i < M)


def _merge(part_lse: Tensor, part_positive: Tensor | None, positive: Tensor | None) -> Tensor:
    (parts, m), lse = part_lse.shape, torch.empty_like(part_lse[0])
    with torch.cuda.device_of(part_lse):
        merge_kernel[(triton.cdiv(m, _CONSTANTS["BLOCK_M"]),)](
            part_lse, part_positive, lse, positive, m, parts, **_CONSTANTS, **_OPTIONS
        )
    return lse


def merged_lse(part_lse: Tensor) -> Tensor:
    """Log-sum-exps [M] of partial ones [S, M]; free for S = 1."""
    return part_lse[0] if len(part_lse) == 1 else _merge(part_lse, None, None)


def merged(part_lse: Tensor, part_positive: Tensor) -> tuple[Tensor, Tensor]:
    """Log-sum-exps [M] of [S, M] partial ones, and sums of the positives' parts; free for S = 1."""
    if len(part_lse) == 1:
        return part_lse[0], part_positive[0]
    positive = torch.empty_like(part_lse[0])
    return _merge(part_lse, part_positive, positive), positive
