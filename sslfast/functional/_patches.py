"""Checks that the functions of masked models share."""

import torch
from torch import Tensor

from sslfast.functional._common import FLOATS


def check_data(name: str, x: Tensor, shape: str) -> None:
    """Raise unless x is a floating-point tensor with as many dimensions as ``shape`` names.

    Args:
        name: as messages call it.
        x: what was given.
        shape: like "[B, L, D]".

    Raises:
        TypeError: not a tensor, or not of a floating dtype.
        ValueError: another number of dimensions.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    if x.dtype not in FLOATS:
        raise TypeError(f"{name} must hold floating-point numbers, got {x.dtype}")
    if x.dim() != shape.count(",") + 1:
        raise ValueError(f"{name} must have shape {shape}, got {list(x.shape)}")


def check_ids(name: str, ids: Tensor, batch: int, like: Tensor) -> None:
    """Raise unless ids are int64 [batch, any] on the device of ``like``.

    Raises:
        TypeError: not an int64 tensor.
        ValueError: another shape or device.
    """
    if not isinstance(ids, Tensor) or ids.dtype != torch.int64:
        got = ids.dtype if isinstance(ids, Tensor) else type(ids).__name__
        raise TypeError(f"{name} must be an int64 tensor, got {got}")
    if ids.dim() != 2 or len(ids) != batch:
        raise ValueError(f"{name} must have shape [{batch}, any], got {list(ids.shape)}")
    if ids.device != like.device:
        raise ValueError(f"{name} is on {ids.device}, but the data are on {like.device}")


def check_like(name: str, x: Tensor, shape: tuple[int, ...], like: Tensor) -> None:
    """Raise unless x has this shape and the dtype and device of ``like``.

    Raises:
        ValueError: it has not.
    """
    if tuple(x.shape) != shape:
        raise ValueError(f"{name} must have shape {list(shape)}, got {list(x.shape)}")
    if x.dtype != like.dtype or x.device != like.device:
        raise ValueError(
            f"{name} must be {like.dtype} on {like.device}, got {x.dtype} on {x.device}"
        )


def as_table(name: str, positions: Tensor | None, shape: tuple[int, int]) -> Tensor | None:
    """Positions [L, D], also given as [1, L, D].

    Raises:
        ValueError: another shape.
    """
    if positions is None:
        return None
    table = positions[0] if positions.dim() == 3 and len(positions) == 1 else positions
    if tuple(table.shape) != shape:
        raise ValueError(f"{name} must have shape {list(shape)}, got {list(positions.shape)}")
    return table
