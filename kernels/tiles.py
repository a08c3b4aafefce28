"""Shapes of the programs of the Triton kernels: static tables, or what a user has measured.

All matrix kernels of this package are row-stationary loops over tiles of similarities, of few
kinds. ``_tuning.py`` reads what ``python -m benchmarks.tune`` has measured on a GPU.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from sslfast.kernels.gpu import INTERPRETED


class Tile(NamedTuple):
    """Shape of a program: rows x columns of the logits, and how many features at a time."""

    rows: int
    columns: int
    depth: int  # features a product takes at once, at most
    output: int  # features of the gradient a program holds, at most
    warps: int
    stages: int
    # Programs of the similarity softmax that a multiprocessor has room for, by the registers and
    # shared memory that the compiler gives them.
    programs: int = 1


# Types of Triton for the operands of products.
DTYPES = {
    torch.float16: tl.float16,
    # The interpreter multiplies bfloat16 as if its bits were integers.
    torch.bfloat16: tl.float32 if INTERPRETED else tl.bfloat16,
    torch.float32: tl.float32,
}

Table = tuple[tuple[int, Tile], ...]

# By kind of kernel, architecture and arithmetic: (largest D, tile), the last for every larger D.
# "8" stands for all that have no row of their own too, so it stays within 99 KB of shared memory.
TILES: dict[tuple[str, int, str], Table] = {
    # Keep statistics of a row.
    ("statistics", 8, "16-bit"): (
        (128, Tile(128, 64, 128, 0, 8, 2)),
        (256, Tile(128, 64, 256, 0, 8, 2)),
        (0, Tile(128, 64, 64, 0, 8, 2)),
    ),
    ("statistics", 9, "16-bit"): (
        (128, Tile(128, 64, 128, 0, 8, 3, programs=2)),
        (256, Tile(128, 64, 256, 0, 8, 2)),
        (512, Tile(128, 32, 512, 0, 8, 2)),  # rows stay; columns come while others multiply
        (0, Tile(128, 128, 64, 0, 8, 3)),
    ),
    ("statistics", 10, "16-bit"): (
        (128, Tile(128, 64, 128, 0, 8, 2)),
        (256, Tile(128, 64, 256, 0, 8, 2)),
        (0, Tile(128, 128, 64, 0, 8, 3)),
    ),
    ("statistics", 8, "tf32"): ((0, Tile(128, 64, 32, 0, 8, 2)),),
    ("statistics", 8, "ieee"): ((0, Tile(64, 64, 16, 0, 8, 2)),),
    # Keep a gradient too.
    ("gradient", 8, "16-bit"): (
        (128, Tile(128, 64, 128, 128, 8, 2)),
        (256, Tile(64, 64, 256, 256, 8, 2)),
        (0, Tile(64, 64, 64, 256, 8, 2)),
    ),
    ("gradient", 9, "16-bit"): (
        (128, Tile(128, 128, 128, 128, 8, 2)),
        (256, Tile(128, 64, 256, 256, 8, 2)),
        (0, Tile(128, 64, 32, 256, 8, 2)),
    ),
    ("gradient", 10, "16-bit"): (
        (128, Tile(128, 64, 128, 128, 8, 2)),
        (256, Tile(128, 64, 256, 256, 8, 2)),
        (0, Tile(128, 64, 64, 256, 8, 2)),
    ),
    ("gradient", 8, "tf32"): ((0, Tile(128, 32, 32, 128, 8, 2)),),
    ("gradient", 8, "ieee"): (
        (64, Tile(64, 32, 16, 64, 8, 2)),
        (0, Tile(64, 32, 16, 128, 4, 2)),
    ),
}
# Form a tile of logits a program, over all features; float32 finds them in memory.
TILES |= {
    ("block", 8, "16-bit"): ((0, Tile(128, 128, 64, 0, 8, 3)),),
    ("block", 9, "16-bit"): ((0, Tile(256, 128, 64, 0, 8, 3)),),
    ("block", 10, "16-bit"): ((0, Tile(128, 128, 64, 0, 8, 3)),),
    ("block", 8, "tf32"): ((0, Tile(64, 128, 0, 0, 8, 1)),),
    ("block", 8, "ieee"): ((0, Tile(64, 128, 0, 0, 8, 1)),),
    # Keep inner products beside the weights of a prefix.
    ("prefix block", 8, "16-bit"): ((0, Tile(64, 32, 64, 0, 8, 3)),),
    ("prefix block", 9, "16-bit"): ((0, Tile(128, 32, 64, 0, 8, 3)),),
    ("prefix block", 8, "tf32"): ((0, Tile(32, 64, 0, 0, 4, 1)),),
    ("prefix block", 8, "ieee"): ((0, Tile(32, 64, 0, 0, 4, 1)),),
    # Where blocks are too few for the GPU.
    ("small block", 8, "16-bit"): ((0, Tile(64, 64, 64, 0, 4, 4)),),
    ("small block", 8, "tf32"): ((0, Tile(32, 128, 0, 0, 4, 1)),),
    ("small block", 8, "ieee"): ((0, Tile(32, 128, 0, 0, 4, 1)),),
}
KINDS = ("statistics", "gradient", "contrast", "block")  # that are worth tuning
ARITHMETICS = ("16-bit", "tf32", "ieee")
# Kinds that are like another, but take more registers: blocks whose elements are sorted by ids, and
# the sigmoid's gradient with its losses beside it.
for kind, other in (("sorted block", "block"), ("contrast", "gradient")):
    TILES |= {(kind, *key[1:]): table for key, table in TILES.items() if key[0] == other}
TILES["sorted block", 8, "16-bit"] = ((0, Tile(128, 64, 64, 0, 8, 3)),)
TILES["sorted block", 9, "16-bit"] = ((0, Tile(128, 128, 64, 0, 8, 3)),)
TILES["contrast", 9, "16-bit"] = (
    (128, Tile(128, 64, 128, 128, 8, 2)),
    (256, Tile(128, 32, 256, 256, 8, 2)),
    (0, Tile(128, 32, 64, 256, 16, 2)),
)
TILES["contrast", 8, "ieee"] = (
    (64, Tile(64, 32, 16, 64, 8, 2)),
    (0, Tile(64, 16, 16, 128, 8, 2)),
)


def refuses(dtype: torch.dtype) -> str | None:
    """Why the matrix kernels take no such inputs, or None."""
    if dtype in DTYPES:
        return None
    return f"takes float16, bfloat16 and float32, not {str(dtype).removeprefix('torch.')}"


def arithmetic_of(dtype: torch.dtype) -> str:
    """Which products a dtype asks for: "16-bit", "tf32" or "ieee"."""
    if dtype != torch.float32:
        return "16-bit"
    # Follows allow_tf32 and set_float32_matmul_precision too; these raise once it has been set.
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def static_tile(kind: str, dim: int, arithmetic: str, architecture: int) -> Tile:
    """The tables' tile for D = ``dim`` on a GPU of this compute capability."""
    table = TILES.get((kind, architecture // 10, arithmetic)) or TILES[kind, 8, arithmetic]
    return fitted(table, dim)


def fitted(table: Table, dim: int) -> Tile:
    """The table's tile for D = ``dim``, no deeper than its features need."""
    tile = next((t for largest, t in table if dim <= largest), table[-1][1])
    enough = max(triton.next_power_of_2(dim), 16)
    return tile._replace(depth=min(tile.depth, enough), output=min(tile.output, enough))


def settings(
    dim: int, dtype: torch.dtype, arithmetic: str, tile: Tile
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Constants that all matrix kernels share, and compiler options."""
    constants = {
        "D": dim,
        "BLOCK_M": tile.rows,
        "BLOCK_N": tile.columns,
        "BLOCK_D": tile.depth,
        "OPERAND": DTYPES[dtype],
        "PRECISION": "tf32" if arithmetic == "tf32" else "ieee",
    }
    options = {"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": True}
    return constants, options


START = 2  # what a program costs beside its tiles, and
MERGE = 3  # what joining partial results costs, both in times of a tile
MOST_WAVES = 4  # of programs with a partial result each: bounds their memory


@lru_cache(maxsize=4096)
def splits(blocks: int, tiles: int, resident: int) -> int:
    """Among how many programs to share the column tiles of each of ``blocks`` blocks.

    A fixed rule of sizes, and no measurement: the least number that minimises

        waves x (tiles of a program + START) + MERGE if there are parts to join,
        waves = ceil(blocks x parts / resident),

    in times of a tile. It supposes that ``resident`` programs run at once, and that programs which
    share a multiprocessor take no longer than one alone: each waits in turn for what the others
    keep busy. 64 blocks are split in 2 where 132 programs run, one a multiprocessor of an H100, and
    in 4 where 264 do. More than MOST_WAVES waves are never made, so that the partial results of a
    split take MOST_WAVES x resident tiles of memory at most, whatever the sizes.
    """

    def cost(parts: int) -> int:
        waves = triton.cdiv(blocks * parts, resident)
        return waves * (triton.cdiv(tiles, parts) + START) + (MERGE if parts > 1 else 0)

    most = min(tiles, MOST_WAVES * resident // max(blocks, 1))
    return min(range(1, max(most, 1) + 1), key=cost)


@lru_cache
def _multiprocessors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def multiprocessors(device: torch.device) -> int:
    """Multiprocessors of a GPU; 1 where kernels are emulated, which splits nothing."""
    if INTERPRETED:
        return 1
    return _multiprocessors(torch.cuda.current_device() if device.index is None else device.index)


@lru_cache
def _total_memory(index: int) -> int:
    return torch.cuda.get_device_properties(index).total_memory


def total_memory(device: torch.device) -> int:
    """Bytes of memory of a GPU, free or not; 80 GiB where there is none (emulated, or traced)."""
    if INTERPRETED or not torch.cuda.is_available():
        return 80 << 30
    return _total_memory(torch.cuda.current_device() if device.index is None else device.index)


def resident(tile: Tile, device: torch.device) -> int:
    """Programs of the similarity softmax that run at once on a GPU."""
    return tile.programs * multiprocessors(device)
