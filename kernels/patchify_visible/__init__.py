"""Cuts the visible patches out of images and embeds them, and no others.

Images are [B, C, T, H, W] with T = 1 for a picture, a patch is [C, t, h, w], and patches are
numbered along W first, then H, then T: L = (T / t) (H / h) (W / w). Sizes divide; any floating
dtype; ids int64 [B, K]; everything but the ids has one dtype.

Every backend has two functions.

``forward(images, weight [D, C, t, h, w], bias [D] | None, positions [L, D] | None, ids)``
    -> [B, K, D]: weight . patch(b, ids[b, k]) + bias + positions[ids[b, k]]. Sums are in the
    accumulation dtype. Reads K of L patches, a quarter of the pixels at 75 %, and takes
    2 K D C t h w FLOP a sample instead of 2 L D C t h w.

``cut(images, patch (t, h, w), ids) -> [B, K, C t h w]``
    The visible patches as rows, which the gradient of the weight multiplies.

On the CPU an index outside [0, L) raises IndexError.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

Patch = tuple[int, int, int]


@dataclass(frozen=True)
class Problem:
    """What a backend is asked to do."""

    device: str
    dtype: torch.dtype
    batch: int
    channels: int
    patch: Patch
    keep: int


def problem(images: Tensor, patch: Patch, ids: Tensor) -> Problem:
    """Describe the inputs of either function for the registry."""
    batch, channels = images.shape[:2]
    return Problem(images.device.type, images.dtype, batch, channels, patch, ids.shape[1])


def grid(images: Tensor, patch: Patch) -> tuple[int, int, int]:
    """Patches along T, H and W."""
    t, h, w = (size // p for size, p in zip(images.shape[2:], patch, strict=True))
    return t, h, w


def embed(rows: Tensor, weight: Tensor, offset: Tensor) -> Tensor:
    """Return offset + rows weight^T, summed by the matrix product itself.

    Args:
        rows: cut patches [B, K, C t h w].
        weight: [D, C, t, h, w].
        offset: [B, K, D], overwritten by the result.
    """
    return offset.flatten(0, 1).addmm_(rows.flatten(0, 1), weight.flatten(1).T).view_as(offset)


def offsets(weight: Tensor, bias: Tensor | None, positions: Tensor | None, ids: Tensor) -> Tensor:
    """Bias + positions [B, K, D] of the visible patches."""
    if positions is None:
        offset = weight.new_zeros(len(weight)) if bias is None else bias
        return offset.repeat(*ids.shape, 1)
    return (positions if bias is None else positions + bias)[ids]
