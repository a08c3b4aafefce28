"""Philox 4x32-10, the one source of random bits.

Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3.
key = (low, high) words of the seed; counter = (element // 4, sample id, step, stream), each modulo
2^32; element e takes word e % 4 of the block. What a sample draws depends on nothing else: not on
the device, the batch it is in, nor the number of ranks. ``stream`` numbers the operation and the
view, so that no two operations share bits.

Every backend has ``random_bits(sample_ids, step, seed, stream, count)``: sample_ids int64 [B],
step int64 [] on the same device (no host read), the rest host integers; returns int64 [B, count],
each in [0, 2^32). Kernels that need random numbers draw them in place with the same counters.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """What a backend is asked to do."""

    device: str
    batch: int
    count: int
