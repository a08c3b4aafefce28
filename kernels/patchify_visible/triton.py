"""Visible patches of images in Triton: an implicit matrix product, as of a convolution.

forward reads the pixels of K of L patches (once for each BLOCK_N features), the weight, and writes
K D elements a sample: cut patches never reach memory. 2 B K D C t h w FLOP.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sslfast.kernels.gpu import DEVICE, aligned, unavailable
from sslfast.kernels.patchify_visible import Patch, Problem
from sslfast.kernels.tiles import DTYPES, arithmetic_of, refuses

__all__ = ["DEVICE", "PRIORITY", "available", "cut", "forward"]

PRIORITY = 20

available = unavailable

# Of a program: patches, features of the embedding, and pixels of a patch that it takes at a time.
_TILES = {"16-bit": (128, 128, 64), "tf32": (64, 128, 32), "ieee": (64, 128, 16)}


def supports(problem: Problem) -> str | None:
    """Everything in up to float32."""
    return refuses(problem.dtype)


@triton.jit
def pixel_offsets(  # type: ignore[no-untyped-def]
    i_feature, FRAMES: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    PT: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
):  # fmt: skip
    """Where features (c, t, y, x) of a patch lie in an image, from the patch's first pixel."""
    x, y = i_feature % PW, i_feature // PW % PH
    plane = i_feature // (PW * PH * PT) * FRAMES + i_feature // (PW * PH) % PT
    return (plane * HEIGHT + y) * WIDTH + x


@triton.jit
def patch_origins(  # type: ignore[no-untyped-def]
    i_sample, ids, C: tl.constexpr, FRAMES: tl.constexpr, HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr, PT: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
):  # fmt: skip
    """Where patches begin in the images."""
    rows, columns = HEIGHT // PH, WIDTH // PW
    frame, top = ids // (rows * columns) * PT, ids // columns % rows * PH
    return ((i_sample * (C * FRAMES) + frame) * HEIGHT + top) * WIDTH + ids % columns * PW


@triton.jit(do_not_specialize=["patches", "keep"])
def cut_kernel(  # type: ignore[no-untyped-def]
    p_images, p_ids, p_rows, patches, keep,
    C: tl.constexpr, FRAMES: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    PT: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One visible patch as a row."""
    i_patch = tl.program_id(0).to(tl.int64)
    size = C * PT * PH * PW
    ids = tl.load(p_ids + i_patch)
    origin = patch_origins(i_patch // keep, ids, C, FRAMES, HEIGHT, WIDTH, PT, PH, PW)
    for i_first in range(0, size, BLOCK):
        i_feature = i_first + tl.arange(0, BLOCK)
        m_feature = i_feature < size
        i_pixel = origin + pixel_offsets(i_feature, FRAMES, HEIGHT, WIDTH, PT, PH, PW)
        values = tl.load(p_images + i_pixel, mask=m_feature)
        tl.store(p_rows + i_patch * size + i_feature, values, mask=m_feature)


@triton.jit(do_not_specialize=["patches", "keep"])
def forward_kernel(  # type: ignore[no-untyped-def]
    p_images, p_weight, p_bias, p_positions, p_ids, p_out, patches, keep,
    D: tl.constexpr, C: tl.constexpr, FRAMES: tl.constexpr, HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr, PT: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """BLOCK_M visible patches by BLOCK_N features of the embedding."""
    i_patch = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    i_dim = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_patch, m_dim = i_patch < patches, i_dim < D
    size: tl.constexpr = C * PT * PH * PW
    ids = tl.load(p_ids + i_patch, mask=m_patch, other=0)
    i_sample = (i_patch // keep).to(tl.int64)
    origin = patch_origins(i_sample, ids, C, FRAMES, HEIGHT, WIDTH, PT, PH, PW)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for i_first in range(0, size, BLOCK_K):
        i_feature = i_first + tl.arange(0, BLOCK_K)
        m_feature = i_feature < size
        i_pixel = pixel_offsets(i_feature, FRAMES, HEIGHT, WIDTH, PT, PH, PW)
        pixels = tl.load(
            p_images + origin[:, None] + i_pixel[None, :],
            mask=m_patch[:, None] & m_feature[None, :],
            other=0.0,
        )
        weight = tl.load(
            p_weight + i_dim[None, :] * size + i_feature[:, None],
            mask=m_dim[None, :] & m_feature[:, None],
            other=0.0,
        )
        total = tl.dot(pixels.to(OPERAND), weight.to(OPERAND), total, input_precision=PRECISION)
    if p_bias is not None:
        total += tl.load(p_bias + i_dim, mask=m_dim, other=0.0).to(tl.float32)[None, :]
    m_out = m_patch[:, None] & m_dim[None, :]
    if p_positions is not None:
        i_position = ids[:, None] * D + i_dim[None, :]
        total += tl.load(p_positions + i_position, mask=m_out, other=0.0).to(tl.float32)
    tl.store(p_out + i_patch.to(tl.int64)[:, None] * D + i_dim[None, :], total, mask=m_out)


_CUT_OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}


def _geometry(images_shape: tuple[int, ...], patch: Patch) -> dict[str, int]:
    names = ("C", "FRAMES", "HEIGHT", "WIDTH", "PT", "PH", "PW")
    return dict(zip(names, (*images_shape[1:], *patch), strict=True))


def _cut_constants(images_shape: tuple[int, ...], patch: Patch) -> dict[str, int]:
    size = images_shape[1] * patch[0] * patch[1] * patch[2]
    block = min(triton.next_power_of_2(size), 1024)
    return {**_geometry(images_shape, patch), "BLOCK": block}


def _forward_settings(
    images_shape: tuple[int, ...], patch: Patch, dim: int, dtype: torch.dtype
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Constants and compiler options of the matrix product."""
    arithmetic = arithmetic_of(dtype)
    tile = dict(zip(("BLOCK_M", "BLOCK_N", "BLOCK_K"), _TILES[arithmetic], strict=True))
    constants = {
        "D": dim,
        **_geometry(images_shape, patch),
        **tile,
        "OPERAND": DTYPES[dtype],
        "PRECISION": "tf32" if arithmetic == "tf32" else "ieee",
    }
    return constants, {"num_warps": 8, "num_stages": 3, "enable_fp_fusion": True}


def cut(images: Tensor, patch: Patch, ids: Tensor) -> Tensor:
    """Visible patches as rows; see the package."""
    images, ids = images.contiguous(), ids.contiguous()
    constants = _cut_constants(tuple(images.shape), patch)
    rows = images.new_empty(*ids.shape, images.shape[1] * patch[0] * patch[1] * patch[2])
    if rows.numel():
        with torch.cuda.device_of(images):
            cut_kernel[(ids.numel(),)](
                images, ids, rows, ids.numel(), ids.shape[1], **constants, **_CUT_OPTIONS
            )
    return rows


def forward(
    images: Tensor, weight: Tensor, bias: Tensor | None, positions: Tensor | None, ids: Tensor
) -> Tensor:
    """Embeddings of the visible patches; see the package."""
    images, weight, ids = aligned(images), aligned(weight), aligned(ids)
    bias, positions = (None if t is None else aligned(t) for t in (bias, positions))
    dim, patch = len(weight), tuple(weight.shape[2:])
    out = images.new_empty(*ids.shape, dim)
    if out.numel():
        shape = tuple(images.shape)
        constants, options = _forward_settings(shape, patch, dim, images.dtype)  # type: ignore[arg-type]
        grid = (
            triton.cdiv(dim, constants["BLOCK_N"]),
            triton.cdiv(ids.numel(), constants["BLOCK_M"]),
        )
        with torch.cuda.device_of(images):
            forward_kernel[grid](
                images, weight, bias, positions, ids, out, ids.numel(), ids.shape[1],
                **constants, **options,
            )  # fmt: skip
    return out
