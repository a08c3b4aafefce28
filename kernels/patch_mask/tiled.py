"""Torch only, any device: one selection or sort of unique keys, prefix sums for the indices."""

import torch
from torch import Tensor

from sslfast.kernels.patch_mask import KEY_BITS, Problem
from sslfast.kernels.philox.reference import random_bits

DEVICE = "any"
PRIORITY = 10

INDEX_BITS = 62 - KEY_BITS


def supports(problem: Problem) -> str | None:
    """Rows whose index fits beside a key in 62 bits."""
    if problem.length > 1 << INDEX_BITS:
        return f"selects among at most 2^{INDEX_BITS} elements a row"
    return None


def _unique(keys: Tensor) -> Tensor:
    """Keys with the index below them: no two are equal, and ties fall as they should."""
    return (keys << INDEX_BITS) + torch.arange(keys.shape[1], device=keys.device)


def random(
    sample_ids: Tensor, step: Tensor, seed: int, stream: int, length: int, keep: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The random mask; see the package."""
    keys = _unique(random_bits(sample_ids, step, seed, stream, length))
    if 0 < keep < length:
        mask = keys > keys.topk(keep, largest=False, sorted=False).values.amax(1, keepdim=True)
    else:
        mask = torch.full_like(keys, keep == 0, dtype=torch.bool)
    return *compact(mask, keep), mask


def smallest(keys: Tensor, counts: Tensor) -> Tensor:
    """The smallest keys of each row; see the package."""
    if not keys.numel():
        return torch.zeros_like(keys, dtype=torch.bool)
    unique = _unique(keys)
    last = (counts - 1).clamp(0, keys.shape[1] - 1)[:, None]
    return (unique <= unique.sort(1).values.gather(1, last)) & (counts > 0)[:, None]


def compact(mask: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Indices of a mask; see the package."""
    visible = (~mask).cumsum(1)
    hidden = mask.cumsum(1)
    ids_restore = torch.where(mask, hidden + visible[:, -1:], visible) - 1
    elements = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    order = torch.empty_like(ids_restore).scatter_(1, ids_restore, elements)
    return order[:, :keep].clone(), ids_restore
