"""C++ on the CPU (csrc/cpu/similarity_softmax.cpp): float32, AVX-512 or AVX2 where there."""

from typing import Any

import torch
from torch import Tensor

from sslfast.kernels.dtypes import statistics_dtype
from sslfast.kernels.extension import address, cpu_unavailable, loaded
from sslfast.kernels.similarity_softmax import Features, Pairing, Problem

DEVICE = "cpu"
PRIORITY = 30
FEATURES = Features(both_sides=lambda problem: True, keeps_logits=True)

available = cpu_unavailable


def supports(problem: Problem) -> str | None:
    """Anything in up to float32."""
    if problem.dtype == torch.float64:
        return "computes in float32 and takes no float64"
    return None


def describe(
    rows: Tensor, columns: Tensor | None, scale: Tensor, pairing: Pairing
) -> tuple[Any, ...]:
    """The problem as the extension takes it; pairing fields are in the order of its class."""
    m, dim = rows.shape
    n = m if columns is None else len(columns)
    fields, threads = tuple(pairing.numbers), torch.get_num_threads()
    # No address means the symmetric form; columns of no element have none of their own.
    start = address(rows if columns is not None and not columns.numel() else columns)
    return rows.data_ptr(), m, start, n, dim, scale.item(), fields, threads


def forward(
    rows: Tensor,
    columns: Tensor | None,
    scale: Tensor,
    pairing: Pairing,
    column_lse: bool = False,
    kept: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exps and positive logits; see the package."""
    rows, columns = rows.float(), None if columns is None else columns.float()
    lse = rows.new_empty(len(rows), dtype=statistics_dtype(rows))
    positive = torch.full_like(lse, -torch.inf)
    lse_columns = lse.new_empty(len(rows if columns is None else columns) if column_lse else 0)
    loaded().similarity_forward_cpu(
        *describe(rows, columns, scale, pairing),
        lse.data_ptr(),
        positive.data_ptr(),
        lse_columns.data_ptr() if column_lse else 0,
        *memory_of(kept),
    )
    return lse, positive, lse_columns


def backward(
    rows: Tensor,
    columns: Tensor | None,
    scale: Tensor,
    pairing: Pairing,
    row: tuple[Tensor, Tensor] | None,
    column: tuple[Tensor, Tensor] | None,
    kept: Tensor | None = None,
) -> Tensor:
    """Unscaled gradient of the rows; see the package."""
    return _backward(rows, columns, scale, pairing, row, column, None, kept)[0]


def backward_both(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    pairing: Pairing,
    row: tuple[Tensor, Tensor] | None,
    column: tuple[Tensor, Tensor] | None,
    positive: Tensor,
    kept: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Unscaled gradients of rows and columns from one pass over the tiles; see the package."""
    return _backward(rows, columns, scale, pairing, row, column, positive, kept)


def memory_of(kept: Tensor | None) -> tuple[int, int]:
    """Address and floats of what a forward pass may keep."""
    return (0, 0) if kept is None or not kept.numel() else (kept.data_ptr(), kept.numel())


def _backward(
    rows: Tensor,
    columns: Tensor | None,
    scale: Tensor,
    pairing: Pairing,
    row: tuple[Tensor, Tensor] | None,
    column: tuple[Tensor, Tensor] | None,
    positive: Tensor | None,
    kept: Tensor | None,
) -> tuple[Tensor, Tensor]:
    rows, columns = rows.float(), None if columns is None else columns.float()
    d_rows = torch.empty_like(rows)
    d_columns = (
        torch.empty_like(columns)
        if positive is not None and columns is not None
        else rows.new_empty(0)
    )
    # A list keeps contiguous copies alive until the call has returned.
    sides = [side or (None, None) for side in (row, column)]
    given = [None if t is None else t.double().contiguous() for side in sides for t in side]
    weights = None if positive is None else positive.float().contiguous()
    loaded().similarity_backward_cpu(
        *describe(rows, columns, scale, pairing),
        *(address(t) for t in given),
        address(weights),
        *memory_of(kept),
        d_rows.data_ptr(),
        d_columns.data_ptr() if positive is not None else 0,
    )
    return d_rows, d_columns
