"""The oracle: torch.gather and its adjoint, an index for every number."""

from torch import Tensor

DEVICE = "any"
PRIORITY = 0


def gather(tokens: Tensor, ids: Tensor) -> Tensor:
    """Rows at the indices; see the package."""
    if ids.device.type == "cpu" and bool(((ids < 0) | (ids >= tokens.shape[1])).any()):
        raise IndexError(f"ids must lie in [0, {tokens.shape[1]})")
    return tokens.gather(1, ids[..., None].expand(*ids.shape, tokens.shape[2]))


def scatter(rows: Tensor, ids: Tensor, length: int) -> Tensor:
    """The gradient of gather; see the package."""
    tokens = rows.new_zeros(len(rows), length, rows.shape[2])
    return tokens.scatter_add_(1, ids[..., None].expand_as(rows), rows)
