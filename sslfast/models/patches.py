"""Images cut into patches, and put together again."""

from torch import Tensor


def patchify(images: Tensor, patch: tuple[int, ...]) -> Tensor:
    """Images [B, C, H, W] -> patches [B, L, C h w], along the rows, then down."""
    height, width = patch
    cut = images.unflatten(3, (-1, width)).unflatten(2, (-1, height))  # [B, C, R, h, Q, w]
    return cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpatchify(patches: Tensor, patch: tuple[int, ...], grid: tuple[int, ...]) -> Tensor:
    """The inverse of patchify, for a grid of (rows, columns)."""
    cut = patches.unflatten(2, (-1, *patch)).unflatten(1, grid)  # [B, R, Q, C, h, w]
    return cut.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
