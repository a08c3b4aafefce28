"""C++ on the CPU (csrc/cpu/patch_mask.cpp): a radix select in the L1 cache."""

import torch
from torch import Tensor

from sslfast.kernels.extension import cpu_unavailable, loaded
from sslfast.kernels.patch_mask import KEY_BITS

DEVICE = "cpu"
PRIORITY = 30

available = cpu_unavailable


def random(
    sample_ids: Tensor, step: Tensor, seed: int, stream: int, length: int, keep: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The random mask; see the package."""
    sample_ids, batch = sample_ids.contiguous(), len(sample_ids)
    ids_keep = torch.empty(batch, keep, dtype=torch.int64)
    ids_restore = torch.empty(batch, length, dtype=torch.int64)
    mask = torch.empty(batch, length, dtype=torch.bool)
    loaded().random_patch_mask_cpu(
        sample_ids.data_ptr(),
        batch,
        int(step),
        seed % 2**64,
        stream,
        length,
        keep,
        ids_keep.data_ptr(),
        ids_restore.data_ptr(),
        mask.data_ptr(),
        torch.get_num_threads(),
    )
    return ids_keep, ids_restore, mask


def smallest(keys: Tensor, counts: Tensor) -> Tensor:
    """The smallest keys of each row; see the package."""
    keys, counts = keys.contiguous(), counts.contiguous()
    chosen = torch.empty_like(keys, dtype=torch.bool)
    loaded().smallest_keys_cpu(
        keys.data_ptr(),
        counts.data_ptr(),
        *keys.shape,
        KEY_BITS,
        chosen.data_ptr(),
        torch.get_num_threads(),
    )
    return chosen


def compact(mask: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Indices of a mask; see the package."""
    mask = mask.contiguous()
    batch, length = mask.shape
    ids_keep = torch.empty(batch, keep, dtype=torch.int64)
    ids_restore = torch.empty(batch, length, dtype=torch.int64)
    loaded().compact_mask_cpu(
        mask.data_ptr(),
        batch,
        length,
        keep,
        ids_keep.data_ptr(),
        ids_restore.data_ptr(),
        torch.get_num_threads(),
    )
    return ids_keep, ids_restore
