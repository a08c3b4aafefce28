"""Triton on NVIDIA GPUs: rows with their gradients in one pass, columns in another.

Where D is large, blocks of rows take their place: see _triton_blocks.py. All else here is about the
tiles of the others.

2 M N D FLOP forward, 4 M N D for the gradients of either side while D fits one accumulator. Nothing
of size M x N is held. Where row blocks are too few for the GPU, S programs share the columns of
each (``_tiles.splits``), with 4 S M (D + 2) bytes of partial results. Results are the same from run
to run on a GPU.
"""

import torch
import triton
from torch import Tensor

from sslfast.kernels.gpu import DEVICE, capability, operand, unavailable, without_padding
from sslfast.kernels.growth import growth_of
from sslfast.kernels.products import in_blocks
from sslfast.kernels.sigmoid_contrast import Problem, _triton_blocks
from sslfast.kernels.sigmoid_contrast._triton_kernel import contrast_kernel
from sslfast.kernels.similarity_softmax import Pairing
from sslfast.kernels.tiles import Tile, arithmetic_of, multiprocessors, refuses, settings, splits
from sslfast.kernels.tuning import tile_for

__all__ = ["DEVICE", "PRIORITY", "available", "forward", "gradients"]

PRIORITY = 20

available = unavailable

_KIND = {False: "statistics", True: "contrast"}  # with gradients or without


def supports(problem: Problem) -> str | None:
    """Everything in up to float32."""
    return refuses(problem.dtype)


def forward(rows: Tensor, columns: Tensor, scale: Tensor, bias: Tensor, pairing: Pairing) -> Tensor:
    """Losses of the rows; see the package."""
    rows, columns = operand(rows), operand(columns)
    if in_blocks(rows.shape[1]):
        pairs = _pairs(pairing)
        return _triton_blocks.run(rows, columns, scale, bias, pairs, None, False)[0]
    return _run(rows, columns, scale, bias, pairing, None, None)[0]


def gradients(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    bias: Tensor,
    pairing: Pairing,
    row_weight: Tensor,
    columns_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses and gradients; see the package.

    For 16-bit inputs the weights G_ij are rounded to that dtype before they multiply the other
    side's rows, but not before they add up to d_bias.
    """
    x, y, row_weight = operand(rows), operand(columns), row_weight.contiguous()
    if in_blocks(x.shape[1]):
        pairs = _pairs(pairing)
        found = _triton_blocks.run(x, y, scale, bias, pairs, row_weight, columns_gradient)
        loss, u, v, d_bias = found
    else:
        loss, u, d_bias = _run(x, y, scale, bias, pairing, row_weight, None)
        v = loss.new_empty(0)
        if columns_gradient:
            _, v, _ = _run(y, x, scale, bias, pairing.transposed(), None, row_weight)
    dim = rows.shape[1]
    v = without_padding(v, dim) if columns_gradient else v
    return loss, without_padding(u, dim), v, d_bias


def _pairs(p: Pairing) -> tuple[int, ...]:
    return p.length, p.shift % p.length if p.length else 0, p.row_base, p.column_base


def _run(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    bias: Tensor,
    pairing: Pairing,
    row_weight: Tensor | None,
    column_weight: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, U and d_bias of the rows; without weights no gradients, with columns' no losses."""
    m, dim = rows.shape
    gradient = row_weight is not None or column_weight is not None
    arithmetic = arithmetic_of(rows.dtype)
    tile = tile_for(_KIND[gradient], dim, arithmetic, rows.device)
    constants, options = settings(dim, rows.dtype, arithmetic, tile)
    width = _width(tile, gradient)
    blocks, features = triton.cdiv(m, tile.rows), triton.cdiv(dim, width) if gradient else 1
    tiles = triton.cdiv(len(columns), tile.columns)
    parts = splits(blocks * features, tiles, multiprocessors(rows.device))
    loss = None if column_weight is not None else scale.new_empty(parts, m)
    u = scale.new_empty(parts, m, dim) if gradient else None
    d_bias = None if row_weight is None else scale.new_empty(parts, m)
    if m:
        grown = arithmetic == "16-bit" and column_weight is not None
        with torch.cuda.device_of(rows):
            growth = growth_of(column_weight) if grown and column_weight is not None else None
            contrast_kernel[(blocks, features, parts)](
                rows, columns, scale, bias, row_weight, column_weight, growth, loss, u, d_bias,
                m, len(columns), *_pairs(pairing), **constants, BLOCK_U=width,
                SHARED=_shared(tile, arithmetic, capability(rows.device)), **options,
            )  # fmt: skip
    return _added(loss, scale), _added(u, scale), _added(d_bias, scale)


def _width(tile: Tile, gradient: bool) -> int:
    """Features of the columns that a program multiplies last: of U, else of the logits."""
    return tile.output if gradient else tile.depth


def _shared(tile: Tile, arithmetic: str, architecture: int) -> bool:
    """Whether columns share logarithms: where Hopper's tensor cores give a thread many of a row."""
    hopper = architecture // 10 == 9 and arithmetic != "ieee"
    return hopper and tile.rows >= 16 * tile.warps  # else warps share a row


def _added(parts: Tensor | None, like: Tensor) -> Tensor:
    """The sum of partial results, in a deterministic order; free for a single one."""
    if parts is None:
        return like.new_empty(0)
    return parts[0] if len(parts) == 1 else parts.sum(0)
