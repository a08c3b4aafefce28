"""Tokens of visible patches: cut and embedded, gathered, and put back at their places."""

import torch
from torch import Tensor

from sslfast._arguments import checked
from sslfast.kernels.dtypes import FLOATS
from sslfast.kernels.gather_patches.op import gather_patches as gather_op
from sslfast.kernels.patchify_visible.op import patchify_visible as patchify_op
from sslfast.kernels.restore_with_tokens.op import restore_with_tokens as restore_op


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


@checked
def gather_patches(tokens: Tensor, ids_keep: Tensor) -> Tensor:
    """Take the tokens of some patches: out[b, k] = tokens[b, ids_keep[b, k]].

    The gradient adds up where an index is repeated, in the order of k.

    Args:
        tokens: [B, L, D], float16, bfloat16, float32 or float64.
        ids_keep: int64 [B, K] in [0, L), as masks of ``sslfast.masking`` have them.

    Returns:
        [B, K, D].

    Raises:
        TypeError: tokens that are no floating-point tensor, indices that are not int64.
        ValueError: shapes or devices that do not fit.
        IndexError: an index out of range, on the CPU; on a GPU the result is undefined there.
    """
    check_data("tokens", tokens, "[B, L, D]")
    check_ids("ids_keep", ids_keep, len(tokens), tokens)
    return gather_op(tokens, ids_keep)


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
    return patchify_op(images, weight, bias, table, ids_keep)


@checked
def restore_with_tokens(
    visible: Tensor, token: Tensor, ids_restore: Tensor, positions: Tensor | None = None
) -> Tensor:
    """Put encoded patches back at their places, with a mask token at all others.

    The decoder's input in MAE (He et al. 2022, arXiv:2111.06377, section 3):
    out[b, l] = (visible[b, r] if r < K else token) + positions[l] with r = ids_restore[b, l].

    Args:
        visible: [B, K, D], float16, bfloat16, float32 or float64.
        token: the mask token, D numbers in any shape, such as [D] or [1, 1, D].
        ids_restore: int64 [B, L] with L >= K, a permutation of 0 ... L - 1 in every row, as in
            ``sslfast.masking.PatchMask``. Repeated ones are not looked for: on the CPU the
            equation and its gradient still hold (zeros for a row of ``visible`` that no place
            shows); on a GPU the gradient is undefined then.
        positions: [L, D] or [1, L, D], added in the same pass.

    Returns:
        [B, L, D], of the dtype of ``visible``, which token and positions must have.

    Raises:
        TypeError: rows that are no floating-point tensor, indices that are not int64.
        ValueError: shapes, dtypes or devices that do not fit.
        IndexError: an index outside [0, L), on the CPU; on a GPU the result is undefined there.
    """
    check_data("visible", visible, "[B, K, D]")
    check_ids("ids_restore", ids_restore, len(visible), visible)
    _, keep, dim = visible.shape
    length = ids_restore.shape[1]
    if keep > length:
        raise ValueError(f"visible holds {keep} patches a sample, but ids_restore only {length}")
    token = token.reshape(-1)
    check_like("token", token, (dim,), visible)
    table = as_table("positions", positions, (length, dim))
    if table is not None:
        check_like("positions", table, (length, dim), visible)
    return restore_op(visible, token, ids_restore, table)
