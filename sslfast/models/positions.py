"""Positions of patches: fixed sine and cosine tables, and tables resized to another grid."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sslfast._arguments import Width

Grid = tuple[Width, ...]


def sincos_positions(dim: int, grid: Grid) -> Tensor:
    """A table of sines and cosines, float32 [L, dim], patches along W, then H, then T.

    For (rows, columns) that of MAE (He et al. 2022, arXiv:2111.06377, appendix A.1), whose code
    gives the first half of the width to the column and the second to the row. For
    (frames, rows, columns) that of VideoMAE (arXiv:2203.12602): Vaswani et al. 2017,
    arXiv:1706.03762, section 3.5, over the number of the patch.

    Args:
        dim: width, a multiple of 4 (of 2 for videos).
        grid: patches along each axis.

    Raises:
        ValueError: a width that is no such multiple, a grid of other axes.
    """
    if len(grid) not in (2, 3):
        raise ValueError(f"grid must be (rows, columns) or (frames, rows, columns), got {grid}")
    parts = 2 if len(grid) == 3 else 4
    if dim % parts:
        raise ValueError(f"sine and cosine positions need a width divisible by {parts}, got {dim}")
    if len(grid) == 3:
        number = _angles(torch.arange(math.prod(grid)), dim // 2)
        return torch.stack((number.sin(), number.cos()), -1).flatten(1).float()
    row, column = torch.meshgrid(*map(torch.arange, grid), indexing="ij")
    angles = [_angles(axis.flatten(), dim // 4) for axis in (column, row)]
    return torch.cat([f for a in angles for f in (a.sin(), a.cos())], 1).float()


def _angles(places: Tensor, count: int) -> Tensor:
    """Places [L] times ``count`` frequencies from 1 down to nearly 1 / 10,000: float64."""
    frequencies = 10_000 ** -(torch.arange(count, dtype=torch.float64) / count)
    return places[:, None].double() * frequencies


def resize_positions(positions: Tensor, old: Grid, new: Grid, prefix: int = 0) -> Tensor:
    """Positions for another grid, by antialiased bicubic interpolation (as in timm).

    Args:
        positions: [1, prefix + L, D], learned for the grid ``old``.
        old: (rows, columns), or (frames, rows, columns).
        new: of the same frames.
        prefix: leading positions of class and register tokens, left as they are.

    Returns:
        [1, prefix + L', D] of the same dtype.

    Raises:
        ValueError: another number of frames.
    """
    if old == new:
        return positions
    if old[:-2] != new[:-2]:
        raise ValueError(f"positions are for {old[0]} frames of patches, not for {new[0]}")
    table = positions[:, prefix:].unflatten(1, (-1, *old[-2:]))[0]  # [frames, rows, columns, D]
    resized = F.interpolate(
        table.permute(0, 3, 1, 2).float(), new[-2:], mode="bicubic", antialias=True
    )
    table = resized.permute(0, 2, 3, 1).reshape(1, -1, positions.shape[-1]).to(positions.dtype)
    return torch.cat((positions[:, :prefix], table), 1)


def fit_positions(positions: Tensor, grid: Grid, prefix: int = 0) -> Tensor:
    """Positions of other weights, interpolated where those are for another image size (as in timm).

    Args:
        positions: [1, prefix + L, D], of a square grid of any size, or of ``grid`` itself.
        grid: (rows, columns), or (frames, rows, columns).
        prefix: leading positions of class and register tokens.

    Returns:
        [1, prefix + L', D] for ``grid``.

    Raises:
        ValueError: positions of neither this grid nor a square one of as many frames.
    """
    patches, frames = positions.shape[1] - prefix, math.prod(grid[:-2])
    if patches == math.prod(grid):
        return positions
    side = math.isqrt(max(patches, 0) // frames)
    if side < 1 or frames * side**2 != patches:
        raise ValueError(
            f"{positions.shape[1]} positions are no square grid of patches"
            + (f" in {frames} frames" if frames > 1 else "")
            + (f" behind {prefix} tokens" if prefix else "")
            + f", and cannot be interpolated to {' x '.join(map(str, grid))}: were the weights "
            "trained with other tokens, frames or an oblong image?"
        )
    return resize_positions(positions, (*grid[:-2], side, side), grid, prefix)
