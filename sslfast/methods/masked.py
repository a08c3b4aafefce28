"""What the methods that hide patches of an image or a video share."""

import math

import torch
from torch import Tensor

from sslfast.data.batch import Batch
from sslfast.models import VisionTransformer


def only_view(batch: Batch) -> Tensor:
    """The images [B, C, H, W], or videos [B, C, T, H, W], of a batch with one view.

    Raises:
        ValueError: several views.
    """
    views = batch.views
    if len(views) != 1:
        raise ValueError(
            f"a masked method learns from one view, got {len(views)}: choose a recipe of one view, "
            "such as mae"
        )
    return views[0]


def patch_numbers(encoder: VisionTransformer) -> int:
    """Numbers in a patch: channels x height x width, of videos times frames."""
    return encoder.patch_embed.proj.in_channels * math.prod(encoder.patch_size)


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


def visible_only(images: Tensor, ids: Tensor, encoder: VisionTransformer) -> Tensor:
    """Images [B, C, H, W] with all patches grey but those in ids, int64 [B, K]."""
    patches = patchify(images, encoder.patch_size)
    hidden = torch.ones(patches.shape[:2], dtype=torch.bool, device=images.device)
    patches = patches.masked_fill(hidden.scatter(1, ids, False)[..., None], 0.0)
    return unpatchify(patches, encoder.patch_size, encoder.grid_size)


def reconstruction(
    original: Tensor, predicted: Tensor, mask: Tensor, encoder: VisionTransformer
) -> dict[str, Tensor]:
    """Pictures of patches [B, L, P]: as they were, as the encoder saw them, as predicted.

    Hidden patches are grey, and only they are taken from the prediction.
    """
    hidden = mask[..., None]
    rows = {
        "original": original,
        "masked": original.masked_fill(hidden, 0.0),
        "reconstructed": original.where(~hidden, predicted.to(original.dtype)),
    }
    size = encoder.patch_size, encoder.grid_size
    return {name: unpatchify(patches, *size) for name, patches in rows.items()}
