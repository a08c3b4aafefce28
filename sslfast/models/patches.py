"""Images and videos cut into patches, and put together again."""

from torch import Tensor


def patchify(images: Tensor, patch: tuple[int, ...]) -> Tensor:
    """Images [B, C, H, W] -> patches [B, L, C h w], along the rows, then down.

    Videos [B, C, T, H, W] -> [B, L, C t h w], and at last through time.
    """
    axes = len(patch)
    for axis, side in reversed(list(enumerate(patch, start=2))):
        images = images.unflatten(axis, (-1, side))  # at last [B, C, R, h, Q, w]
    outer, inner = range(2, 2 + 2 * axes, 2), range(3, 3 + 2 * axes, 2)
    return images.permute(0, *outer, 1, *inner).flatten(1 + axes).flatten(1, axes)


def unpatchify(patches: Tensor, patch: tuple[int, ...], grid: tuple[int, ...]) -> Tensor:
    """The inverse of patchify, for a grid of (rows, columns), or (frames, rows, columns)."""
    axes = len(patch)
    cut = patches.unflatten(2, (-1, *patch)).unflatten(1, grid)  # [B, R, Q, C, h, w]
    pairs = [axis for n in range(1, 1 + axes) for axis in (n, n + 1 + axes)]
    images = cut.permute(0, 1 + axes, *pairs)
    for axis in range(2, 2 + axes):
        images = images.flatten(axis, axis + 1)
    return images
