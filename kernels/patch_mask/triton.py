"""Selection of patches in Triton: one program a sample, everything in registers.

The threshold ("cut"), a v with K keys below it, comes from a binary radix select: from the most
significant bit down, one count over the row for each bit, all in 32 bits, until K keys are told
from the rest; prefix sums give the indices. ``random`` reads 8 bytes a sample and writes 9 an
element and 8 a kept one; nothing is read back, no key is stored.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sslfast.kernels.gpu import DEVICE, unavailable
from sslfast.kernels.patch_mask import KEY_BITS, Problem
from sslfast.kernels.philox.triton import sample_words, signed

__all__ = [
    "DEVICE", "PRIORITY", "available", "compact", "random", "smallest", "supports",
]  # fmt: skip

PRIORITY = 20
MOST = 4096

available = unavailable


def supports(problem: Problem) -> str | None:
    """Rows that fit in the registers of a program."""
    if problem.length > MOST:
        return f"selects among at most {MOST} elements a row"
    return None


@triton.jit
def cut_of(keys, count, BITS: tl.constexpr):  # type: ignore[no-untyped-def]
    """A v with `count` of the uint32 keys [BLOCK] below it, else the largest with fewer.

    A key of 2^BITS - 1 is never below: it stands for an element that does not exist.
    """
    cut = tl.zeros((), tl.uint32)
    bit = tl.full((), 1 << (BITS - 1), tl.uint32)
    below = tl.full((), -1, tl.int32)
    # Of 196 random keys about nine bits tell one subset from all others.
    while (bit > 0) & (below != count):
        below = tl.sum(tl.where(keys < (cut | bit), 1, 0))
        cut = tl.where(below <= count, cut | bit, cut)
        bit = bit >> 1
    return cut


@triton.jit
def choose(keys, m_row, count):  # type: ignore[no-untyped-def]
    """Where the `count` smallest of uint32 keys [BLOCK] are, ties by index; m_row: what exists."""
    cut = cut_of(tl.where(m_row, keys, 0xFFFFFFFF), count, 32)
    m_below = m_row & (keys < cut)
    equal = tl.where(m_row & (keys == cut), 1, 0)
    equal_before = tl.cumsum(equal) - equal
    return m_below | ((equal > 0) & (equal_before < count - tl.sum(tl.where(m_below, 1, 0))))


@triton.jit
def store_indices(  # type: ignore[no-untyped-def]
    p_ids_keep, p_ids_restore, i_element, m_row, m_visible, length, keep
):
    """ids_keep and ids_restore of one row, a stable partition: visible elements come first."""
    visible = tl.where(m_visible, 1, 0)
    visible_before = tl.cumsum(visible) - visible
    hidden_before = i_element - visible_before
    place = tl.where(m_visible, visible_before, tl.sum(visible) + hidden_before)
    i_row = tl.program_id(0).to(tl.int64)
    tl.store(p_ids_restore + i_row * length + i_element, place.to(tl.int64), mask=m_row)
    m_keep = m_row & (place < keep)
    tl.store(p_ids_keep + i_row * keep + place, i_element.to(tl.int64), mask=m_keep)


@triton.jit(do_not_specialize=["seed", "stream", "length", "keep"])
def random_kernel(  # type: ignore[no-untyped-def]
    p_sample_ids, p_step, p_ids_keep, p_ids_restore, p_mask,
    seed: tl.int64, stream: tl.int64, length, keep, BLOCK: tl.constexpr,
):  # fmt: skip
    """Keys, selection and indices of one sample."""
    i_row = tl.program_id(0).to(tl.int64)
    i_block = tl.arange(0, BLOCK // 4)
    sample_id, step = tl.load(p_sample_ids + i_row), tl.load(p_step)
    w0, w1, w2, w3 = sample_words(i_block, sample_id, step, seed, stream)
    keys = tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))
    i_element = tl.arange(0, BLOCK)
    m_row = i_element < length
    m_visible = choose(keys, m_row, keep)
    tl.store(p_mask + i_row * length + i_element, m_visible == 0, mask=m_row)
    store_indices(p_ids_keep, p_ids_restore, i_element, m_row, m_visible, length, keep)


@triton.jit(do_not_specialize=["length"])
def smallest_kernel(  # type: ignore[no-untyped-def]
    p_keys, p_counts, p_chosen, length, BITS: tl.constexpr, BLOCK: tl.constexpr
):
    """The smallest keys of one row, by their words of 32 bits: first the high one."""
    i_row = tl.program_id(0).to(tl.int64)
    i_element = tl.arange(0, BLOCK)
    m_row = i_element < length
    keys = tl.load(p_keys + i_row * length + i_element, mask=m_row, other=(1 << BITS) - 1)
    count = tl.minimum(tl.maximum(tl.load(p_counts + i_row), 0), length).to(tl.int32)
    high = (keys >> 32).to(tl.uint32)
    cut = cut_of(high, count, BITS - 32)
    m_below = high < cut
    count -= tl.sum(tl.where(m_below, 1, 0))
    m_chosen = m_below | choose(keys.to(tl.uint32), m_row & (high == cut), count)
    tl.store(p_chosen + i_row * length + i_element, m_chosen, mask=m_row)


@triton.jit(do_not_specialize=["length", "keep"])
def compact_kernel(  # type: ignore[no-untyped-def]
    p_mask, p_ids_keep, p_ids_restore, length, keep, BLOCK: tl.constexpr
):
    """Indices of one row of a mask."""
    i_row = tl.program_id(0).to(tl.int64)
    i_element = tl.arange(0, BLOCK)
    m_row = i_element < length
    hidden = tl.load(p_mask + i_row * length + i_element, mask=m_row, other=1)
    m_visible = m_row & (hidden == 0)
    store_indices(p_ids_keep, p_ids_restore, i_element, m_row, m_visible, length, keep)


def _settings(length: int) -> tuple[dict[str, int], dict[str, Any]]:
    block = max(triton.next_power_of_2(length), 16)
    return {"BLOCK": block}, {"num_warps": min(max(block // 256, 1), 8), "enable_fp_fusion": True}


def random(
    sample_ids: Tensor, step: Tensor, seed: int, stream: int, length: int, keep: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The random mask; see the package."""
    sample_ids, batch = sample_ids.contiguous(), len(sample_ids)
    ids_keep, ids_restore = sample_ids.new_empty(batch, keep), sample_ids.new_empty(batch, length)
    mask = torch.empty_like(ids_restore, dtype=torch.bool)
    if mask.numel():
        constants, options = _settings(length)
        with torch.cuda.device_of(sample_ids):
            random_kernel[(batch,)](
                sample_ids, step, ids_keep, ids_restore, mask, signed(seed), signed(stream),
                length, keep, **constants, **options,
            )  # fmt: skip
    return ids_keep, ids_restore, mask


def smallest(keys: Tensor, counts: Tensor) -> Tensor:
    """The smallest keys of each row; see the package."""
    keys, counts = keys.contiguous(), counts.contiguous()
    chosen = torch.empty_like(keys, dtype=torch.bool)
    if keys.numel():
        constants, options = _settings(keys.shape[1])
        with torch.cuda.device_of(keys):
            smallest_kernel[(len(keys),)](
                keys, counts, chosen, keys.shape[1], KEY_BITS, **constants, **options
            )
    return chosen


def compact(mask: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Indices of a mask; see the package."""
    mask = mask.contiguous()
    batch, length = mask.shape
    ids_keep = torch.empty(batch, keep, dtype=torch.int64, device=mask.device)
    ids_restore = torch.empty(batch, length, dtype=torch.int64, device=mask.device)
    if mask.numel():
        constants, options = _settings(length)
        with torch.cuda.device_of(mask):
            compact_kernel[(batch,)](
                mask, ids_keep, ids_restore, length, keep, **constants, **options
            )
    return ids_keep, ids_restore
