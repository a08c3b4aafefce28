"""What the methods that hide patches of an image share."""

import math

import torch
from torch import Tensor

from sslfast.data.batch import Batch
from sslfast.models import VisionTransformer


def only_view(batch: Batch) -> Tensor:
    """The images [B, C, H, W] of a batch with one view.

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


def image_grid(encoder: VisionTransformer, least: int = 1) -> tuple[int, int]:
    """Rows and columns of an encoder's patches.

    Raises:
        ValueError: an encoder of videos, or fewer than ``least`` patches.
    """
    if len(encoder.grid_size) != 2:
        raise ValueError("this method takes images: build the encoder without num_frames")
    rows, columns = encoder.grid_size
    if rows * columns < least:
        raise ValueError(
            f"this method needs at least {least} patches, got {rows} x {columns}: build the "
            "encoder with a larger img_size or a smaller patch_size"
        )
    return rows, columns


def patch_numbers(encoder: VisionTransformer) -> int:
    """Numbers in a patch of the encoder's images: channels x height x width."""
    return encoder.patch_embed.proj.in_channels * math.prod(encoder.patch_size)


def patchify(images: Tensor, patch: tuple[int, ...]) -> Tensor:
    """Images [B, C, H, W] -> patches [B, L, C h w], along the rows, then down."""
    height, width = patch
    cut = images.unflatten(3, (-1, width)).unflatten(2, (-1, height))  # [B, C, R, h, Q, w]
    return cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpatchify(patches: Tensor, patch: tuple[int, ...], grid: tuple[int, ...]) -> Tensor:
    """The inverse of patchify, for a grid of (rows, columns)."""
    cut = patches.unflatten(2, (-1, *patch)).unflatten(1, grid)  # [B, R, Q, C, h, w]
    return cut.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def visible_only(images: Tensor, encoder: VisionTransformer, **seen: Tensor) -> dict[str, Tensor]:
    """Pictures of images [B, C, H, W]: as they are, and with all patches grey but some.

    Args:
        images: "original".
        encoder: whose patches.
        **seen: int64 [B, K], the patches to show in the picture of that name.
    """
    original = patchify(images, encoder.patch_size)
    pictures = {"original": images}
    for name, ids in seen.items():
        hidden = torch.ones(original.shape[:2], dtype=torch.bool, device=images.device)
        patches = original.masked_fill(hidden.scatter(1, ids, False)[..., None], 0.0)
        pictures[name] = unpatchify(patches, encoder.patch_size, encoder.grid_size)
    return pictures


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
