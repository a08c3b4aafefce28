"""Decoder input of a masked autoencoder: encoded rows at their places, a mask token elsewhere.

Every backend has two functions; any floating dtype, ids_restore int64 [B, L] as in
``kernels.patch_mask``: a permutation of 0 ... L - 1 in every row. On the CPU an index outside
[0, L) raises IndexError, and with repeated ones both functions are still what is written here. On a
GPU no index is looked at by the host, and rows that are no permutation give undefined numbers.

``forward(visible [B, K, D], token [D], ids_restore, positions [L, D] | None) -> [B, L, D]``
    out[b, l] = (visible[b, r] if r < K else token) + positions[l] with r = ids_restore[b, l].
    The result is written once; no [B, L - K, D] of repeated tokens, no index for every number.

``backward(gradient [B, L, D], ids_restore, keep) -> (d_visible [B, K, D], d_token [D])``
    d_visible[b, k] sums the gradient of the places with ids_restore[b, l] = k, of which there is
    one in a permutation; zeros where there is none. d_token sums that of all hidden places, in the
    accumulation dtype (float32, or float64 for float64) and a deterministic order; that of the
    positions is the gradient's sum over the batch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Problem:
    """What a backend is asked to do."""

    device: str
    dtype: torch.dtype
    batch: int
    length: int
    keep: int
    dim: int


def problem(rows: Tensor, ids_restore: Tensor, keep: int) -> Problem:
    """Describe the inputs of either direction for the registry."""
    batch, length = ids_restore.shape
    return Problem(rows.device.type, rows.dtype, batch, length, keep, rows.shape[2])


def check_ids(ids_restore: Tensor) -> None:
    """Look at indices on the CPU, where that waits for nothing.

    Raises:
        IndexError: one lies outside [0, L).
    """
    length = ids_restore.shape[1]
    if ids_restore.device.type == "cpu" and bool(
        ((ids_restore < 0) | (ids_restore >= length)).any()
    ):
        raise IndexError(outside(length))


def outside(length: int) -> str:
    """The message about indices outside [0, length)."""
    return f"ids_restore must lie in [0, {length})"
