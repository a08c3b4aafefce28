"""Which patches of each sample stay, from Philox keys; definitions in kernels/patch_mask."""

from typing import Any

import torch
from torch import Tensor

from sslfast.kernels import registry
from sslfast.kernels.library import NAMESPACE
from sslfast.kernels.patch_mask import Problem


def _backend(like: Tensor, length: int) -> Any:
    return registry.pick("patch_mask", Problem(like.device.type, len(like), length))


def _check_keep(keep: int, length: int) -> None:
    if not 0 <= keep <= length:
        raise ValueError(f"cannot keep {keep} of {length} elements")


@torch.library.custom_op(f"{NAMESPACE}::random_patch_mask", mutates_args=())
def random_patch_mask(
    sample_ids: Tensor, step: Tensor, seed: int, stream: int, length: int, keep: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Keep the elements with the ``keep`` smallest random words, ties by index.

    Args:
        sample_ids: int64 [B].
        step: int64 [] on the same device.
        seed: the key, modulo 2^64.
        stream: number of the operation and view that draws, in [0, 2^32).
        length: L, elements a sample.
        keep: K <= L.

    Returns:
        ids_keep int64 [B, K] ascending, ids_restore int64 [B, L], mask bool [B, L], true = hidden.
    """
    _check_keep(keep, length)
    return _backend(sample_ids, length).random(sample_ids, step, seed, stream, length, keep)


@random_patch_mask.register_fake
def _(
    sample_ids: Tensor, step: Tensor, seed: int, stream: int, length: int, keep: int
) -> tuple[Tensor, Tensor, Tensor]:
    ids_restore = sample_ids.new_empty(sample_ids.shape[0], length)
    ids_keep = sample_ids.new_empty(sample_ids.shape[0], keep)
    return ids_keep, ids_restore, torch.empty_like(ids_restore, dtype=torch.bool)


@torch.library.custom_op(f"{NAMESPACE}::smallest_keys", mutates_args=())
def smallest_keys(keys: Tensor, counts: Tensor) -> Tensor:
    """Mark the smallest keys of each row, ties by index.

    Args:
        keys: int64 [B, L] in [0, 2^40).
        counts: int64 [B], how many of each row.

    Returns:
        bool [B, L].
    """
    return _backend(keys, keys.shape[1]).smallest(keys, counts)


@smallest_keys.register_fake
def _(keys: Tensor, counts: Tensor) -> Tensor:
    return keys.new_empty(keys.shape, dtype=torch.bool)


@torch.library.custom_op(f"{NAMESPACE}::compact_mask", mutates_args=())
def compact_mask(mask: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Indices of a mask whose rows leave ``keep`` elements visible each.

    Args:
        mask: bool [B, L], true = hidden.
        keep: K <= L.

    Returns:
        ids_keep int64 [B, K], the visible elements in order (a row that has fewer goes on with its
        hidden ones), and ids_restore int64 [B, L], the place of each element when visible ones come
        first and hidden ones follow.
    """
    _check_keep(keep, mask.shape[1])
    return _backend(mask, mask.shape[1]).compact(mask, keep)


@compact_mask.register_fake
def _(mask: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    ids_restore = mask.new_empty(mask.shape, dtype=torch.int64)
    return ids_restore.new_empty(mask.shape[0], keep), ids_restore
