"""Embeddings of visible patches."""

import torch
from torch import Tensor

from sslfast._arguments import checked
from sslfast.functional._patches import as_table, check_data, check_ids, check_like
from sslfast.ops.patchify_visible import patchify_visible as op


@checked
def patchify_visible(
    images: Tensor,
    ids_keep: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    positions: Tensor | None = None,
) -> Tensor:
    """Cut and embed the visible patches only.

    The same as a convolution whose stride is its kernel, flattened to [B, L, D], plus positions,
    taken at ids_keep (MAE, He et al. 2022, arXiv:2111.06377, section 3), without reading or
    embedding a hidden patch. Patches are numbered along the rows of the image, then down; tubelets
    of videos along W, then H, then T. Under autocast it runs in the autocast dtype, as conv2d does.

    Args:
        images: [B, C, H, W], or videos [B, C, T, H, W]; float16, bfloat16, float32 or float64.
        ids_keep: int64 [B, K] in [0, L).
        weight: [D, C, h, w], or [D, C, t, h, w] for videos: conv2d's or conv3d's.
        bias: [D].
        positions: [L, D] or [1, L, D].

    Returns:
        [B, K, D].

    Raises:
        TypeError: images that are no floating-point tensor, indices that are not int64.
        ValueError: an image that is not a whole number of patches; shapes, dtypes or devices that
            do not fit.
        IndexError: an index out of range, on the CPU; on a GPU the result is undefined there.
    """
    device = images.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        images, weight = images.to(dtype), weight.to(dtype)
        bias, positions = (None if t is None else t.to(dtype) for t in (bias, positions))
    video = images.dim() == 5
    check_data("images", images, "[B, C, T, H, W]" if video else "[B, C, H, W]")
    check_data("weight", weight, "[D, C, t, h, w]" if video else "[D, C, h, w]")
    check_ids("ids_keep", ids_keep, len(images), images)
    check_like("weight", weight, (len(weight), images.shape[1], *weight.shape[2:]), images)
    size, patch = tuple(images.shape[2:]), tuple(weight.shape[2:])
    if 0 in patch or any(s % p for s, p in zip(size, patch, strict=True)):
        raise ValueError(
            f"images of size {list(size)} are no whole number of patches of {list(patch)}: "
            "resize or crop them"
        )
    length = 1
    for s, p in zip(size, patch, strict=True):
        length *= s // p
    table = as_table("positions", positions, (length, len(weight)))
    for name, x, shape in (("bias", bias, (len(weight),)), ("positions", table, None)):
        if x is not None:
            check_like(name, x, shape or tuple(x.shape), images)
    if not video:
        images, weight = images[:, :, None], weight[:, :, None]
    return op(images, weight, bias, table, ids_keep)
