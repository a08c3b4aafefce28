"""What the methods that hide patches of an image or a video share."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sslfast.data.batch import Batch
from sslfast.functional import restore_with_tokens
from sslfast.masking import SpreadMask, spread_mask
from sslfast.methods.base import Context
from sslfast.models import VisionTransformer
from sslfast.models.patches import patchify, unpatchify

# The published encoders of I-JEPA and VideoMAE: model_args.
PATCHES_ONLY = {
    **{"class_token": False, "global_pool": "avg", "fc_norm": False, "pos_embed": "sincos"}
}


def check_patches(encoder: VisionTransformer, method: str, least: int) -> None:
    """Refuse an encoder for a method of patches alone.

    Raises:
        ValueError: features of a class token, which stays untrained; fewer than ``least`` patches.
    """
    image_grid(encoder, least)
    if encoder.global_pool == "token":
        raise ValueError(f'{method} trains no class token: build the model with global_pool="avg"')


def only_view(batch: Batch) -> Tensor:
    """The images [B, C, H, W], or videos [B, C, T, H, W], of a batch with one view.

    Raises:
        ValueError: several views.
    """
    views = batch.views
    if len(views) != 1:
        raise ValueError(
            f"this method learns from one view, got {len(views)}: choose a recipe of one view, "
            "such as mae"
        )
    return views[0]


def image_grid(encoder: VisionTransformer, least: int = 1) -> tuple[int, int]:
    """Rows and columns of an encoder's patches.

    Raises:
        ValueError: fewer than ``least`` patches.
    """
    rows, columns = encoder.grid_size
    if rows * columns < least:
        raise ValueError(
            f"this method needs at least {least} patches, got {rows} x {columns}: build the "
            "encoder with a larger img_size or a smaller patch_size"
        )
    return rows, columns


def patch_numbers(encoder: VisionTransformer) -> int:
    """Numbers in a patch: channels x height x width, of videos times frames."""
    return encoder.patch_embed.proj.in_channels * math.prod(encoder.patch_size)


def hidden_number(mask_ratio: float, length: int, rounded: Callable[[float], int] = round) -> int:
    """How many of ``length`` patches are hidden.

    Raises:
        ValueError: none or all, or a ratio outside [0, 1].
    """
    if not 0 <= mask_ratio <= 1:  # so neither is NaN
        raise ValueError(f"mask_ratio must lie in (0, 1), got {mask_ratio}")
    number = rounded(mask_ratio * length)
    if not 0 < number < length:
        raise ValueError(
            f"mask_ratio={mask_ratio} hides {number} of {length} patches: choose a ratio that "
            "hides some and keeps some"
        )
    return number


def encode_masked(
    encoder: VisionTransformer, images: Tensor, token: Tensor, ids_keep: Tensor, ids_restore: Tensor
) -> Tensor:
    """Encoded patches [B, L, D] of images whose hidden patches are a mask token.

    Args:
        encoder: a VisionTransformer; it runs on all patches.
        images: [B, C, H, W].
        token: [1, 1, D], the mask token.
        ids_keep: see ``sslfast.masking.PatchMask``, as for what follows.
        ids_restore: see there.
    """
    visible = encoder.embed(images, ids_keep, positions=False)
    _, positions = encoder.positions(encoder.grid_size)
    tokens = restore_with_tokens(visible, token, ids_restore, positions)
    return encoder.transform(tokens)[:, encoder.num_prefix_tokens :]


def embed_masked(encoder: VisionTransformer, images: Tensor, token: Tensor, mask: Tensor) -> Tensor:
    """Tokens [B, L, D] of images, with positions, for ``encoder.transform``: hidden ones a token.

    Args:
        encoder: a VisionTransformer.
        images: [B, C, H, W].
        token: [1, 1, D], the mask token.
        mask: bool [B, L], true = hidden; images may differ in how many are.
    """
    tokens = encoder.embed(images, positions=False)
    _, positions = encoder.positions(encoder.grid_of(images))
    tokens = torch.where(mask[..., None], token.to(tokens.dtype), tokens)
    return tokens if positions is None else tokens + positions


def spread_masks(
    encoder: VisionTransformer,
    batch: Batch,
    ctx: Context,
    views: int,
    ratios: tuple[float, float],
    probability: float,
) -> SpreadMask:
    """What the first ``views`` of a batch hide in this step, one view's images after the other's.

    Args:
        encoder: whose patches.
        batch: its first views have one size.
        ctx: where the training stands.
        views: how many hide something.
        ratios: see ``sslfast.masking.spread_mask``, as for what follows.
        probability: see there.
    """
    rows, columns = encoder.grid_of(batch.views[0])
    return SpreadMask.joined(
        *(
            spread_mask(
                len(batch.sample_ids), (rows, columns), ratios, probability=probability,
                seed=ctx.seed, step=ctx.drawn_step, sample_ids=batch.sample_ids, stream=view,
            )
            for view in range(views)
        )
    )  # fmt: skip


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


def denormalized(prediction: Tensor, target: Tensor, parts: int) -> Tensor:
    """Predictions [B, L, P] of normalised patches, in the true patches' mean and spread.

    Args:
        prediction: in units of the true patches' deviations.
        target: true patches.
        parts: of a patch, each normalised by itself.
    """
    rows = target.unflatten(2, (parts, -1))
    spread = (rows.var(-1, keepdim=True) + 1e-6).sqrt()
    return (prediction.unflatten(2, rows.shape[2:]) * spread + rows.mean(-1, keepdim=True)).flatten(
        2
    )


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
