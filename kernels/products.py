"""What ops share that multiply through memory, by cuBLAS, a block of rows at a time.

linear_cross_entropy always does; similarity_softmax and sigmoid_contrast where ``in_blocks`` says
so. Their other kernels keep the gradient of a block of rows beside the products: that takes D
accumulators a row, and beyond 256 of them every program of 256 features forms the logits anew, from
chunks of X and Y that come from L2 again for every tile. In units of M N D FLOP the gradients of
both sides then cost

    4 (1 + ceil(D / 256))  with the gradient beside the products,
    6                      by blocks: 2 in the sweep that writes the weights G, 4 by cuBLAS,

beside 6 bytes of memory traffic a logit, 2 ps at 3 TB/s, where M N D FLOP take 0.8 ps a logit at
D = 512 and 660 TFLOP/s: at D = 512 12 against 6 and a half, at D = 256 8 against 6 and 5, and the
tiles of few features need no memory. So blocks are taken for every D > 256, at any M and N: with
few logits either is a matter of launches, of which blocks need no more.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from sslfast.kernels.gpu import INTERPRETED, capability
from sslfast.kernels.tiles import (
    Tile,
    arithmetic_of,
    multiprocessors,
    settings,
    static_tile,
    total_memory,
)
from sslfast.kernels.tuning import tile_for

RESIDENT_DIM = 256  # features whose gradients a program holds for a block of rows

# What lies in memory of a block of rows takes at most this share of the GPU's memory (2.5 GiB of an
# H100's) and no more than MOST_BYTES; or as much as the float32 gradient that products are added to
# where that is more: adding then takes a small part of the block's time.
SHARE = 32
MOST_BYTES = 4 << 30

# Before 2.10, torch adds 16-bit products to 16-bit tensors only.
_ADDS_IN_FLOAT32 = torch.__version__ >= (2, 10)  # type: ignore[operator]  # a TorchVersion


def in_blocks(dim: int) -> bool:
    """Whether weights of D = ``dim`` go through memory; see above."""
    return dim > RESIDENT_DIM


def block_bytes(device: torch.device) -> int:
    """What a block may take on a device, whatever is free there."""
    return min(total_memory(device) // SHARE, MOST_BYTES)


def rows_of_a_block(rows: int, row_bytes: float, added_bytes: int, device: torch.device) -> int:
    """Rows that are in memory at a time: nearly equal blocks within the budget, one row at least.

    Args:
        rows: all there are.
        row_bytes: what one of them takes.
        added_bytes: size of the float32 gradient that each block is added to.
        device: whose memory it is.
    """
    most = max(int(max(block_bytes(device), added_bytes) / max(row_bytes, 1)), 1)
    return triton.cdiv(rows, triton.cdiv(rows, most))


def multiply(a: Tensor, b: Tensor, out: Tensor, add: bool = False) -> Tensor:
    """The product a b, written or added to a float32 ``out``; sums are in float32."""
    if INTERPRETED:
        a, b = a.float(), b.float()
    if a.dtype == torch.float32:
        return torch.addmm(out, a, b, out=out) if add else torch.mm(a, b, out=out)
    if not add:
        return torch.mm(a, b, out_dtype=torch.float32, out=out)
    if _ADDS_IN_FLOAT32:
        return torch.addmm(out, a, b, out_dtype=torch.float32, out=out)
    return out.add_(torch.mm(a, b, out_dtype=torch.float32))


def block_memory(like: Tensor, rows: int, columns: int, dtype: torch.dtype | None = None) -> Tensor:
    """[rows, columns] on the device of ``like``; rows lie a multiple of 64 elements apart.

    So cuBLAS and Triton move full vectors. The Triton kernels' ``block_memory`` knows it.
    """
    return like.new_empty(rows, triton.cdiv(columns, 64) * 64, dtype=dtype)[:, :columns]


def logits_in_memory(x: Tensor, y: Tensor) -> Tensor | None:
    """X Y^T of a block where cuBLAS has the faster product, float32; None: kernels form their own.

    In 16 bits a tile of logits stays in the program that multiplies it, which saves 8 bytes of
    memory traffic a logit; a float32 product of Triton takes longer than those.
    """
    if x.dtype != torch.float32:
        return None
    return multiply(x, y.T, block_memory(x, len(x), len(y)))


def block_settings(
    rows: int, columns: int, like: Tensor, kind: str = "block"
) -> tuple[Tile, dict[str, Any], dict[str, Any]]:
    """The tile of a block of logits of features as of ``like``, constants and compiler options.

    A smaller tile where the large ones, whose kind in kernels/tiles.py this is, are too few for the
    GPU.
    """
    dim = like.shape[1]
    arithmetic = arithmetic_of(like.dtype)
    tile = tile_for(kind, dim, arithmetic, like.device)
    enough = multiprocessors(like.device)
    if triton.cdiv(rows, tile.rows) * triton.cdiv(columns, tile.columns) < enough:
        tile = static_tile("small block", dim, arithmetic, capability(like.device))
    constants, options = settings(dim, like.dtype, arithmetic, tile)
    del constants["PRECISION"]  # kernels multiply 16-bit operands only: see logits_in_memory
    return tile, constants, options
