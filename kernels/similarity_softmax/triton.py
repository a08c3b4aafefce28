"""Triton on NVIDIA GPUs: row-stationary tiles in both directions; see the kernels' files.

M x N values are never held: beside its results the backward keeps 4 (M + N) bytes of factors for
16-bit inputs and nothing for float32. Results are the same from run to run.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._triton import DEVICE, INTERPRETED, Compilation, capability, signature, unavailable
from . import Pairing, Problem
from ._triton_backward import backward_kernel, plan_kernel
from ._triton_forward import forward_kernel

__all__ = ["DEVICE", "PRIORITY", "ahead_of_time", "available", "backward", "forward", "supports"]

PRIORITY = 20

available = unavailable

_DTYPES = {
    torch.float16: ("fp16", tl.float16),
    # The interpreter multiplies bfloat16 as if its bits were integers.
    torch.bfloat16: ("bf16", tl.float32 if INTERPRETED else tl.bfloat16),
    torch.float32: ("fp32", tl.float32),
}


class Tile(NamedTuple):
    """Shape of a program: rows x columns of the logits, and how many features at a time."""

    rows: int
    columns: int
    depth: int  # features a product takes at once, at most
    output: int  # features of the gradient a program holds, at most
    warps: int
    stages: int


# By architecture and arithmetic: (largest D, forward, backward), the last for every larger D. "8"
# stands for all that have no row of their own too, so it stays within 99 KB of shared memory.
TILES: dict[tuple[int, str], tuple[tuple[int, Tile, Tile], ...]] = {
    (8, "16-bit"): (
        (128, Tile(128, 64, 128, 128, 8, 2), Tile(128, 64, 128, 128, 8, 2)),
        (256, Tile(128, 64, 256, 256, 8, 2), Tile(64, 64, 256, 256, 8, 2)),
        (0, Tile(128, 64, 64, 0, 8, 2), Tile(64, 64, 64, 256, 8, 2)),
    ),
    (9, "16-bit"): (
        (128, Tile(128, 64, 128, 128, 8, 3), Tile(128, 128, 128, 128, 8, 2)),
        (256, Tile(128, 64, 256, 256, 8, 2), Tile(128, 64, 256, 256, 8, 2)),
        (0, Tile(128, 128, 64, 0, 8, 3), Tile(128, 64, 32, 256, 8, 2)),
    ),
    (10, "16-bit"): (
        (128, Tile(128, 64, 128, 128, 8, 2), Tile(128, 64, 128, 128, 8, 2)),
        (256, Tile(128, 64, 256, 256, 8, 2), Tile(128, 64, 256, 256, 8, 2)),
        (0, Tile(128, 128, 64, 0, 8, 3), Tile(128, 64, 64, 256, 8, 2)),
    ),
    (8, "tf32"): ((0, Tile(128, 64, 32, 0, 8, 2), Tile(128, 32, 32, 128, 8, 2)),),
    (8, "ieee"): (
        (64, Tile(64, 64, 16, 0, 8, 2), Tile(64, 32, 16, 64, 8, 2)),
        (0, Tile(64, 64, 16, 0, 8, 2), Tile(64, 32, 16, 128, 4, 2)),
    ),
}


def supports(problem: Problem) -> str | None:
    """Everything in up to float32."""
    if problem.dtype not in _DTYPES:
        return (
            f"takes float16, bfloat16 and float32, not {str(problem.dtype).removeprefix('torch.')}"
        )
    return None


def _arithmetic(dtype: torch.dtype) -> str:
    if dtype != torch.float32:
        return "16-bit"
    # Follows allow_tf32 and set_float32_matmul_precision too; these raise once it has been set.
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def _tile(dim: int, arithmetic: str, architecture: int, backward: bool) -> Tile:
    """The tile for a problem, no deeper than its features need."""
    table = TILES.get((architecture // 10, arithmetic)) or TILES[8, arithmetic]
    entry = next((e for e in table if dim <= e[0]), table[-1])
    tile = entry[2] if backward else entry[1]
    enough = max(triton.next_power_of_2(dim), 16)
    return tile._replace(depth=min(tile.depth, enough), output=min(tile.output, enough))


def _settings(
    dim: int, dtype: torch.dtype, arithmetic: str, tile: Tile
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Constants that both kernels share, and compiler options."""
    constants = {
        "D": dim,
        "BLOCK_M": tile.rows,
        "BLOCK_N": tile.columns,
        "BLOCK_D": tile.depth,
        "OPERAND": _DTYPES[dtype][1],
        "PRECISION": "tf32" if arithmetic == "tf32" else "ieee",
    }
    options = {"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": True}
    return constants, options


_PLAN = {"BLOCK": 4096}
_PLAN_OPTIONS = {"num_warps": 8, "enable_fp_fusion": True}


def _sizes(rows: Tensor, columns: Tensor, p: Pairing) -> tuple[int, ...]:
    shift = p.shift % p.length if p.length else 0
    self_length = p.length if p.leave_out_self else 0
    return len(rows), len(columns), p.length, shift, p.row_base, p.column_base, self_length


def _row_statistics(
    rows: Tensor, columns: Tensor, scale: Tensor, pairing: Pairing
) -> tuple[Tensor, Tensor]:
    lse, positive = scale.new_empty(len(rows)), scale.new_empty(len(rows))
    if len(rows):
        arithmetic = _arithmetic(rows.dtype)
        tile = _tile(rows.shape[1], arithmetic, capability(rows.device), backward=False)
        constants, options = _settings(rows.shape[1], rows.dtype, arithmetic, tile)
        sizes = _sizes(rows, columns, pairing)
        with torch.cuda.device_of(rows):
            forward_kernel[(triton.cdiv(len(rows), tile.rows),)](
                rows, columns, scale, lse, positive, *sizes, **constants, **options
            )
    return lse, positive


def forward(
    rows: Tensor, columns: Tensor | None, scale: Tensor, pairing: Pairing, column_lse: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exps and positive logits; see the package."""
    lse, positive = _row_statistics(rows, rows if columns is None else columns, scale, pairing)
    if not column_lse:
        return lse, positive, lse.new_empty(0)
    if columns is None:
        return lse, positive, lse.clone()
    return lse, positive, _row_statistics(columns, rows, scale, pairing.transposed())[0]


def backward(
    rows: Tensor,
    columns: Tensor | None,
    scale: Tensor,
    pairing: Pairing,
    row: tuple[Tensor, Tensor] | None,
    column: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """Unscaled gradient of the rows; see the package.

    For 16-bit inputs the weights G_ij are rounded to that dtype before they multiply the columns.
    """
    if not rows.numel() or (row is None and column is None):
        return torch.zeros_like(rows, dtype=scale.dtype)
    y = rows if columns is None else columns
    arithmetic = _arithmetic(rows.dtype)
    tile = _tile(rows.shape[1], arithmetic, capability(rows.device), backward=True)
    constants, options = _settings(rows.shape[1], rows.dtype, arithmetic, tile)
    grid = triton.cdiv(len(rows), tile.rows), triton.cdiv(rows.shape[1], tile.output)
    sizes = _sizes(rows, y, pairing)
    statistics = *_contiguous(row), *_contiguous(column)
    u = torch.empty_like(rows, dtype=scale.dtype)
    with torch.cuda.device_of(rows):
        planned = arithmetic == "16-bit" and column is not None
        plan = _plan(statistics, *sizes[:2]) if planned else (None, None, None)
        backward_kernel[grid](
            rows, y, scale, *statistics, *plan, u, *sizes,
            **constants, BLOCK_U=tile.output, **options,
        )  # fmt: skip
    return u


def _contiguous(side: tuple[Tensor, Tensor] | None) -> tuple[Tensor | None, Tensor | None]:
    return (None, None) if side is None else (side[0].contiguous(), side[1].contiguous())


def _plan(statistics: tuple[Tensor | None, ...], m: int, n: int) -> tuple[Tensor | None, ...]:
    """Factors of rows and columns, and how to use them; see ``plan_kernel``."""
    row_lse, _, column_lse, _ = statistics
    assert column_lse is not None
    row_factor = None if row_lse is None else torch.empty_like(row_lse)
    plan = row_factor, torch.empty_like(column_lse), column_lse.new_empty(4)
    blocks = triton.cdiv(max(m, n), _PLAN["BLOCK"])
    plan_kernel[(blocks,)](*statistics, *plan, m, n, **_PLAN, **_PLAN_OPTIONS)
    return plan


_PLANNED = "p_row_factor", "p_column_factor", "p_plan"
_ABSENT: dict[str, tuple[str, ...]] = {
    "both": (),
    "rows": ("p_column_lse", "p_column_weight", *_PLANNED),
    "columns": ("p_row_lse", "p_row_weight", "p_row_factor"),
}


def ahead_of_time(
    capability: int, dims: tuple[int, ...] = (64, 128, 256, 512)
) -> Iterator[Compilation]:
    """What this backend launches on a GPU of this compute capability, for D in ``dims``."""
    for label, dtype, arithmetic in (
        ("bf16", torch.bfloat16, "16-bit"),
        ("fp16", torch.float16, "16-bit"),
        ("fp32", torch.float32, "ieee"),
        ("tf32", torch.float32, "tf32"),
    ):
        pointers = dict.fromkeys(("p_x", "p_y"), "*" + _DTYPES[dtype][0])
        matrix = arithmetic != "ieee"
        for dim in dims:
            tile = _tile(dim, arithmetic, capability, backward=False)
            constants, options = _settings(dim, dtype, arithmetic, tile)
            types = signature(forward_kernel, constants, **pointers)
            name = f"forward {label} D={dim}"
            yield Compilation(name, forward_kernel, types, constants, options, matrix)
            tile = _tile(dim, arithmetic, capability, backward=True)
            shared, options = _settings(dim, dtype, arithmetic, tile)
            for sides, absent in _ABSENT.items():
                absent += () if arithmetic == "16-bit" else _PLANNED
                constants = shared | {"BLOCK_U": tile.output} | dict.fromkeys(absent)
                types = signature(backward_kernel, constants, **pointers)
                name = f"backward of {sides} {label} D={dim}"
                yield Compilation(name, backward_kernel, types, constants, options, matrix)
    types = signature(plan_kernel, _PLAN)
    yield Compilation("plan", plan_kernel, types, _PLAN, _PLAN_OPTIONS)
