"""Embedding of visible patches: schema, fake, autograd -> a backend of the registry."""

from typing import Any

import torch
from torch import Tensor

from sslfast.kernels import registry
from sslfast.kernels.gather_patches.op import scatter_patches
from sslfast.kernels.library import NAMESPACE
from sslfast.kernels.patchify_visible import Patch, problem

OP = "patchify_visible"


def _patch(weight: Tensor) -> Patch:
    t, h, w = weight.shape[2:]
    return t, h, w


@torch.library.custom_op(f"{NAMESPACE}::patchify_visible", mutates_args=())
def patchify_visible(
    images: Tensor, weight: Tensor, bias: Tensor | None, positions: Tensor | None, ids: Tensor
) -> Tensor:
    """Embed the patches of images that ids name.

    Args:
        images: [B, C, T, H, W], any floating dtype; T = 1 for pictures.
        weight: [D, C, t, h, w] of the same dtype, sizes that divide T, H and W.
        bias: [D] or None.
        positions: [L, D], added to the patches by their number, or None.
        ids: int64 [B, K], patch numbers along W, then H, then T.

    Returns:
        [B, K, D].
    """
    backend = registry.pick(OP, problem(images, _patch(weight), ids))
    with torch.autocast(images.device.type, enabled=False):
        return backend.forward(images, weight, bias, positions, ids)


@patchify_visible.register_fake
def _(
    images: Tensor, weight: Tensor, bias: Tensor | None, positions: Tensor | None, ids: Tensor
) -> Tensor:
    return images.new_empty(*ids.shape, weight.shape[0])


@torch.library.custom_op(f"{NAMESPACE}::cut_patches", mutates_args=())
def cut_patches(images: Tensor, patch: list[int], ids: Tensor) -> Tensor:
    """Visible patches [B, K, C t h w] of images [B, C, T, H, W]."""
    t, h, w = patch
    backend = registry.pick(OP, problem(images, (t, h, w), ids))
    return backend.cut(images, (t, h, w), ids)


@cut_patches.register_fake
def _(images: Tensor, patch: list[int], ids: Tensor) -> Tensor:
    t, h, w = patch
    return images.new_empty(*ids.shape, images.shape[1] * t * h * w)


def _images(rows: Tensor, ids: Tensor, shape: tuple[int, ...], patch: Patch) -> Tensor:
    """Put rows [B, K, C t h w] at their patches of images that are zero elsewhere."""
    batch, channels, *sizes = shape
    frames, lines, columns = (size // p for size, p in zip(sizes, patch, strict=True))
    patches = scatter_patches(rows, ids, frames * lines * columns)
    apart = patches.view(batch, frames, lines, columns, channels, *patch)
    return apart.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(shape)


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    images, weight, _, positions, ids = inputs
    ctx.save_for_backward(images, weight, ids)
    ctx.length = None if positions is None else positions.shape[0]


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    images, weight, ids = ctx.saved_tensors
    patch = _patch(weight)
    flat = gradient.flatten(0, 1)
    d_images = d_weight = d_bias = d_positions = None
    if ctx.needs_input_grad[0]:
        rows = (flat @ weight.flatten(1)).view(*ids.shape, -1)
        d_images = _images(rows, ids, images.shape, patch)
    if ctx.needs_input_grad[1]:
        rows = cut_patches(images, list(patch), ids).flatten(0, 1)
        d_weight = (flat.T @ rows).view_as(weight)
    if ctx.needs_input_grad[2]:
        d_bias = flat.sum(0)
    if ctx.needs_input_grad[3]:
        d_positions = scatter_patches(gradient, ids, ctx.length).sum(0)
    return d_images, d_weight, d_bias, d_positions, None


patchify_visible.register_autograd(_backward, setup_context=_save_forward)


def _save_cut(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    images, ctx.patch, ids = inputs
    ctx.shape = images.shape
    ctx.save_for_backward(ids)


def _cut_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
    (ids,), (t, h, w) = ctx.saved_tensors, ctx.patch
    return _images(gradient, ids, ctx.shape, (t, h, w)), None, None


cut_patches.register_autograd(_cut_backward, setup_context=_save_cut)
