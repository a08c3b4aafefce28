"""Philox 4x32-10 in Triton, with the counters of this package.

Reads 8 bytes a sample and writes 8 bytes a word; nothing is read back. A block of four words costs
ten rounds of two 32 x 32 bit products, about 100 integer operations.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sslfast.kernels.gpu import DEVICE, unavailable

__all__ = ["DEVICE", "PRIORITY", "available", "random_bits"]

PRIORITY = 20

_CONSTANTS = {"BLOCK": 256}  # counters a program
_OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}

available = unavailable


@triton.jit
def sample_words(i_block, sample_id, step, seed, stream):  # type: ignore[no-untyped-def]
    """The four uint32 words of counters (i_block, sample id, step, stream); one block a sample."""
    zero = i_block.to(tl.uint32) * 0
    return tl.philox(
        seed,
        i_block.to(tl.uint32),
        zero + sample_id.to(tl.uint32),
        zero + step.to(tl.uint32),
        zero + stream.to(tl.uint32),
    )


@triton.jit(do_not_specialize=["seed", "stream", "count"])
def random_bits_kernel(  # type: ignore[no-untyped-def]
    p_sample_ids, p_step, p_out, seed: tl.int64, stream: tl.int64, count, BLOCK: tl.constexpr
):
    """One program a sample and BLOCK counters."""
    i_sample = tl.program_id(0).to(tl.int64)
    i_block = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    step = tl.load(p_step)
    w0, w1, w2, w3 = sample_words(i_block, tl.load(p_sample_ids + i_sample), step, seed, stream)
    words = tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))
    i_word = tl.program_id(1) * (4 * BLOCK) + tl.arange(0, 4 * BLOCK)
    tl.store(p_out + i_sample * count + i_word, words.to(tl.int64), mask=i_word < count)


def signed(word: int) -> int:
    """The 64-bit two's complement of any integer: one kernel serves every seed."""
    return (word + 2**63) % 2**64 - 2**63


def random_bits(sample_ids: Tensor, step: Tensor, seed: int, stream: int, count: int) -> Tensor:
    """Random words; see the package."""
    sample_ids = sample_ids.contiguous()
    out = sample_ids.new_empty(len(sample_ids), count)
    if out.numel():
        grid = (len(sample_ids), triton.cdiv(count, 4 * _CONSTANTS["BLOCK"]))
        arguments = (sample_ids, step, out, signed(seed), signed(stream), count)
        with torch.cuda.device_of(sample_ids):
            random_bits_kernel[grid](*arguments, **_CONSTANTS, **_OPTIONS)
    return out
