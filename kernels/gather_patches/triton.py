"""Rows of tokens by index in Triton: one program a row of the result, both ways in one launch.

gather moves 2 D elements a program. scatter finds the rows that belong to a token by comparing all
of its sample's indices (8 K bytes from the L2 cache, beside D elements written), and adds them in
a deterministic order: no inverse index in memory, no atomics.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sslfast.kernels.gpu import DEVICE, unavailable

__all__ = ["DEVICE", "PRIORITY", "available", "gather", "scatter"]

PRIORITY = 20

available = unavailable


@triton.jit(do_not_specialize=["length", "keep"])
def gather_kernel(  # type: ignore[no-untyped-def]
    p_tokens, p_ids, p_rows, length, keep, D: tl.constexpr, BLOCK: tl.constexpr
):
    """rows[i] = tokens[sample, ids[i]]."""
    i_row = tl.program_id(0).to(tl.int64)
    i_token = i_row // keep * length + tl.load(p_ids + i_row)
    for i_first in range(0, D, BLOCK):
        i_dim = i_first + tl.arange(0, BLOCK)
        m_dim = i_dim < D
        values = tl.load(p_tokens + i_token * D + i_dim, mask=m_dim)
        tl.store(p_rows + i_row * D + i_dim, values, mask=m_dim)


@triton.jit(do_not_specialize=["length", "keep"])
def scatter_kernel(  # type: ignore[no-untyped-def]
    p_rows, p_ids, p_tokens, length, keep,
    D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_IDS: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """tokens[i] = sum of the rows whose index is i's place in its sample."""
    i_token = tl.program_id(0).to(tl.int64)
    i_sample = i_token // length
    place = i_token - i_sample * length
    i_dim = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m_dim = i_dim < D
    total = tl.zeros((BLOCK,), SUM)
    for i_first in range(0, keep, BLOCK_IDS):
        i_id = i_first + tl.arange(0, BLOCK_IDS)
        ids = tl.load(p_ids + i_sample * keep + i_id, mask=i_id < keep, other=-1)
        found = tl.where(ids == place, i_id, keep)
        i_row = tl.min(found)
        while i_row < keep:
            p_row = p_rows + (i_sample * keep + i_row) * D
            total += tl.load(p_row + i_dim, mask=m_dim, other=0.0).to(SUM)
            found = tl.where(found == i_row, keep, found)
            i_row = tl.min(found)
    tl.store(p_tokens + i_token * D + i_dim, total, mask=m_dim)


_OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}


def _block(dim: int) -> int:
    return min(triton.next_power_of_2(dim), 1024)


def _scatter_constants(dtype: torch.dtype, dim: int, keep: int) -> dict[str, object]:
    ids = max(min(triton.next_power_of_2(keep), 1024), 16)
    total = tl.float64 if dtype == torch.float64 else tl.float32
    return {"D": dim, "BLOCK": _block(dim), "BLOCK_IDS": ids, "SUM": total}


def gather(tokens: Tensor, ids: Tensor) -> Tensor:
    """Rows at the indices; see the package."""
    tokens, ids = tokens.contiguous(), ids.contiguous()
    dim = tokens.shape[2]
    rows = tokens.new_empty(*ids.shape, dim)
    if rows.numel():
        sizes = tokens.shape[1], ids.shape[1]
        with torch.cuda.device_of(tokens):
            gather_kernel[(ids.numel(),)](
                tokens, ids, rows, *sizes, D=dim, BLOCK=_block(dim), **_OPTIONS
            )
    return rows


def scatter(rows: Tensor, ids: Tensor, length: int) -> Tensor:
    """The gradient of gather; see the package."""
    rows, ids = rows.contiguous(), ids.contiguous()
    batch, keep, dim = rows.shape
    tokens = rows.new_empty(batch, length, dim)
    if tokens.numel():
        constants = _scatter_constants(rows.dtype, dim, keep)
        grid = batch * length, triton.cdiv(dim, _block(dim))
        with torch.cuda.device_of(rows):
            scatter_kernel[grid](rows, ids, tokens, length, keep, **constants, **_OPTIONS)
    return tokens
