"""Random bits that depend on (seed, sample, step, stream) alone; see kernels/philox."""

import torch
from torch import Tensor

from sslfast.kernels import registry
from sslfast.kernels.library import NAMESPACE
from sslfast.kernels.philox import Problem


@torch.library.custom_op(f"{NAMESPACE}::random_bits", mutates_args=())
def random_bits(sample_ids: Tensor, step: Tensor, seed: int, stream: int, count: int) -> Tensor:
    """Random 32-bit words [B, count] as int64: the same on every device, batch split and rank.

    Args:
        sample_ids: int64 [B].
        step: int64 [] on the same device.
        seed: the key, modulo 2^64.
        stream: number of the operation and view that draws, in [0, 2^32).
        count: words a sample.
    """
    backend = registry.pick("philox", Problem(sample_ids.device.type, len(sample_ids), count))
    return backend.random_bits(sample_ids, step, seed, stream, count)


@random_bits.register_fake
def _(sample_ids: Tensor, step: Tensor, seed: int, stream: int, count: int) -> Tensor:
    return sample_ids.new_empty(sample_ids.shape[0], count)
