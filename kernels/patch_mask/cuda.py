"""CUDA C++ (csrc/cuda/patch_mask.cu): a block a sample, the CPU's radix select in parallel."""

import torch
from torch import Tensor

from sslfast.kernels.extension import cuda_unavailable, loaded
from sslfast.kernels.patch_mask import KEY_BITS, Problem

DEVICE = "cuda"
PRIORITY = 5  # below Triton until a GPU run has shown it right and faster

available = cuda_unavailable

MOST = 4096  # keys of 8 bytes in 32 KiB of shared memory


def supports(problem: Problem) -> str | None:
    """Rows whose keys fit in shared memory."""
    if problem.length > MOST:
        return f"selects among at most {MOST} elements a row"
    return None


def _empty(like: Tensor, batch: int, length: int, keep: int) -> tuple[Tensor, Tensor]:
    ids_restore = torch.empty(batch, length, dtype=torch.int64, device=like.device)
    return ids_restore.new_empty(batch, keep), ids_restore


def random(
    sample_ids: Tensor, step: Tensor, seed: int, stream: int, length: int, keep: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The random mask; see the package."""
    sample_ids, batch = sample_ids.contiguous(), len(sample_ids)
    ids_keep, ids_restore = _empty(sample_ids, batch, length, keep)
    mask = torch.empty_like(ids_restore, dtype=torch.bool)
    with torch.cuda.device(sample_ids.device):
        loaded().random_patch_mask_cuda(
            sample_ids.data_ptr(),
            batch,
            step.data_ptr(),
            seed % 2**64,
            stream,
            length,
            keep,
            ids_keep.data_ptr(),
            ids_restore.data_ptr(),
            mask.data_ptr(),
            torch.cuda.current_stream().cuda_stream,
        )
    return ids_keep, ids_restore, mask


def smallest(keys: Tensor, counts: Tensor) -> Tensor:
    """The smallest keys of each row; see the package."""
    keys, counts = keys.contiguous(), counts.contiguous()
    chosen = torch.empty_like(keys, dtype=torch.bool)
    with torch.cuda.device(keys.device):
        loaded().smallest_keys_cuda(
            keys.data_ptr(),
            counts.data_ptr(),
            *keys.shape,
            KEY_BITS,
            chosen.data_ptr(),
            torch.cuda.current_stream().cuda_stream,
        )
    return chosen


def compact(mask: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Indices of a mask; see the package."""
    mask = mask.contiguous()
    batch, length = mask.shape
    ids_keep, ids_restore = _empty(mask, batch, length, keep)
    with torch.cuda.device(mask.device):
        loaded().compact_mask_cuda(
            mask.data_ptr(),
            batch,
            length,
            keep,
            ids_keep.data_ptr(),
            ids_restore.data_ptr(),
            torch.cuda.current_stream().cuda_stream,
        )
    return ids_keep, ids_restore
