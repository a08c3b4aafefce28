"""The oracle: stable sorts."""

import torch
from torch import Tensor

from sslfast.kernels.philox.reference import random_bits

DEVICE = "any"
PRIORITY = 0


def random(
    sample_ids: Tensor, step: Tensor, seed: int, stream: int, length: int, keep: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The random mask; see the package."""
    keys = random_bits(sample_ids, step, seed, stream, length)
    mask = ~smallest(keys, torch.full_like(sample_ids, keep))
    return *compact(mask, keep), mask


def smallest(keys: Tensor, counts: Tensor) -> Tensor:
    """The smallest keys of each row; see the package."""
    ranks = keys.argsort(stable=True, dim=1).argsort(1)
    return ranks < counts[:, None]


def compact(mask: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Indices of a mask; see the package."""
    order = mask.argsort(stable=True, dim=1)
    return order[:, :keep].clone(), order.argsort(1)
