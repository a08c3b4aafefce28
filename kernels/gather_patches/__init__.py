"""Rows of tokens by index, and the way back.

Every backend has two functions. Any floating dtype; ids int64; sizes may be 0.

``gather(tokens [B, L, D], ids [B, K]) -> rows [B, K, D]``
    rows[b, k] = tokens[b, ids[b, k]]: 2 K D numbers of traffic a sample, and no index per number.

``scatter(rows [B, K, D], ids [B, K], length) -> tokens [B, L, D]``
    tokens[b, l] = the sum of rows[b, k] over ids[b, k] = l, in the order of k; zeros where there is
    none. Written once, without atomics: the gradient of ``gather``, also for repeated indices.

On the CPU an index outside [0, L) raises IndexError; on a GPU no index is looked at by the host,
and one outside gives undefined rows.
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


def problem(rows: Tensor, ids: Tensor, length: int) -> Problem:
    """Describe the inputs of either direction for the registry."""
    return Problem(rows.device.type, rows.dtype, len(ids), length, ids.shape[1], rows.shape[2])
