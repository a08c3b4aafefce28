"""Torch only, any device: whole rows by one index; repeated indices in a deterministic order."""

import torch
from torch import Tensor

DEVICE = "any"
PRIORITY = 10


def _flat(ids: Tensor, length: int) -> Tensor:
    """Indices [B K] into the rows of all samples."""
    first = torch.arange(len(ids), device=ids.device)[:, None] * length
    return (ids + first).flatten()


def gather(tokens: Tensor, ids: Tensor) -> Tensor:
    """Rows at the indices; see the package."""
    if ids.device.type == "cpu" and bool(((ids < 0) | (ids >= tokens.shape[1])).any()):
        raise IndexError(f"ids must lie in [0, {tokens.shape[1]})")
    rows = tokens.flatten(0, 1).index_select(0, _flat(ids, tokens.shape[1]))
    return rows.view(*ids.shape, tokens.shape[2])


def scatter(rows: Tensor, ids: Tensor, length: int) -> Tensor:
    """The gradient of gather; see the package."""
    tokens = rows.new_zeros(len(ids) * length, rows.shape[2])
    index, rows = _flat(ids, length), rows.flatten(0, 1)
    if tokens.device.type == "cpu":
        tokens.index_add_(0, index, rows)  # in order, where index_put_ has atomic additions
    else:
        tokens.index_put_((index,), rows, accumulate=True)  # sorts, where index_add_ has them
    return tokens.view(len(ids), length, rows.shape[1])
