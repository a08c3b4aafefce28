"""Patches hidden independently: MAE's random mask, and VideoMAE's tubes of it."""

import torch
from torch import Tensor

from sslfast._arguments import NonNegativeInt, PositiveInt, Probability, checked
from sslfast.kernels.patch_mask.op import random_patch_mask
from sslfast.masking._common import RANDOM, PatchMask, Stream, source


def _check_keep(keep: int, patches: int, given: str) -> int:
    if not 0 < keep < patches:
        left = "no" if keep <= 0 else "every"
        raise ValueError(
            f"{given} leaves {left} patch of {patches} visible: choose one that hides some and "
            "keeps some"
        )
    return keep


@checked
def random_mask(
    batch: NonNegativeInt,
    num_patches: PositiveInt,
    mask_ratio: Probability = 0.75,
    *,
    num_masked: PositiveInt | None = None,
    seed: int,
    step: int | Tensor = 0,
    sample_ids: Tensor | None = None,
    stream: Stream = 0,
    device: torch.device | str | None = None,
) -> PatchMask:
    """Hide patches at random, the same number in every sample (MAE).

    He et al. 2022, arXiv:2111.06377, section 3: a uniformly random subset without replacement. The
    K patches whose Philox words are smallest stay, ties by index; one launch on a GPU.

    Args:
        batch: B.
        num_patches: L.
        mask_ratio: share of hidden patches; K = int(L * (1 - mask_ratio)) stay, as in MAE's code.
        num_masked: how many are hidden, in the place of a ratio.
        seed: see ``sslfast.masking``, as for all that follow.
        step: see ``sslfast.masking``.
        sample_ids: see ``sslfast.masking``.
        stream: see ``sslfast.masking``.
        device: see ``sslfast.masking``.

    Returns:
        PatchMask(ids_keep [B, K], ids_restore [B, L], mask [B, L]).

    Raises:
        ValueError: a ratio or a number that leaves no patch visible, or none hidden, as every
            ratio does of one patch.
    """
    if num_masked is None:
        keep = _keep_of(num_patches, mask_ratio)
    else:
        keep = num_patches - num_masked
        _check_keep(keep, num_patches, f"num_masked={num_masked}")
    words = source(
        RANDOM, batch, seed=seed, step=step, sample_ids=sample_ids, stream=stream, device=device
    )
    return PatchMask(
        *random_patch_mask(
            words.sample_ids, words.step, words.seed, words.stream, num_patches, keep
        )
    )


def _keep_of(num_patches: int, mask_ratio: float) -> int:
    """Visible patches of MAE's code.

    Raises:
        ValueError: none or all.
    """
    keep = int(num_patches * (1 - mask_ratio))
    if num_patches > 1 and 0 < mask_ratio < 1 and not keep:
        # As a decimal number the ratio may leave exactly one: 10 * (1 - 0.9) is 0.99...98.
        raise ValueError(
            f"mask_ratio={mask_ratio} leaves no patch of {num_patches} visible: K = int(L * (1 - "
            f"mask_ratio)) = int({num_patches * (1 - mask_ratio):.17g}) is rounded down to 0. To "
            f"keep one patch, choose a ratio such as {1 - 1.5 / num_patches:.6g}"
        )
    return _check_keep(keep, num_patches, f"mask_ratio={mask_ratio}")


@checked
def tube_mask(
    batch: NonNegativeInt,
    frames: PositiveInt,
    patches_per_frame: PositiveInt,
    mask_ratio: Probability = 0.9,
    *,
    seed: int,
    step: int | Tensor = 0,
    sample_ids: Tensor | None = None,
    stream: Stream = 0,
    device: torch.device | str | None = None,
) -> PatchMask:
    """Hide the same patches in every frame (VideoMAE).

    Tong et al. 2022, arXiv:2203.12602, section 3.3. Rounded as in its code: of P patches a frame
    int(P * mask_ratio) are hidden, so that 20 of 196 stay at 90 %.

    Args:
        batch: B.
        frames: T, counted after the tubelet embedding (8 of 16 frames with tubelets of 2).
        patches_per_frame: P. Patch p of frame t is number t P + p; L = T P.
        mask_ratio: share of hidden patches of a frame.
        seed: see ``sslfast.masking``, as for all that follow.
        step: see ``sslfast.masking``.
        sample_ids: see ``sslfast.masking``.
        stream: see ``sslfast.masking``.
        device: see ``sslfast.masking``.

    Returns:
        PatchMask(ids_keep [B, T k], ids_restore [B, L], mask [B, L]), k patches of each frame.

    Raises:
        ValueError: no frames, or a ratio that leaves no patch visible or none hidden.
    """
    hidden = int(patches_per_frame * mask_ratio)
    keep = _check_keep(
        patches_per_frame - hidden,
        patches_per_frame,
        f"mask_ratio={mask_ratio}",
    )
    words = source(
        RANDOM, batch, seed=seed, step=step, sample_ids=sample_ids, stream=stream, device=device
    )
    ids_keep, place, mask = random_patch_mask(
        words.sample_ids, words.step, words.seed, words.stream, patches_per_frame, keep
    )
    frame = torch.arange(frames, device=mask.device)[:, None]
    # A frame's visible patches follow those of the frames before it, and so do its hidden ones.
    place = place[:, None]
    shift = torch.where(place < keep, frame * keep, (frames - 1) * keep + frame * hidden)
    return PatchMask(
        (ids_keep[:, None] + frame * patches_per_frame).flatten(1),
        (place + shift).flatten(1),
        mask.repeat(1, frames),
    )
