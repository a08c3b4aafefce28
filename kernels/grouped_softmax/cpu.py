"""C++ on the CPU (csrc/cpu/grouped_softmax.cpp): float32, AVX-512 or AVX2 where there."""

from typing import Any

import torch
from torch import Tensor

from sslfast.kernels.class_sums.op import classes_of
from sslfast.kernels.extension import address, cpu_unavailable, loaded
from sslfast.kernels.grouped_softmax import Groups, Problem, Side
from sslfast.kernels.similarity_softmax import Features, Pairing
from sslfast.kernels.similarity_softmax.cpu import describe, memory_of

DEVICE = "cpu"
PRIORITY = 30
FEATURES = Features(keeps_logits=True)

available = cpu_unavailable


def supports(problem: Problem) -> str | None:
    """Anything in up to float32."""
    if problem.dtype == torch.float64:
        return "computes in float32 and takes no float64"
    return None


def _numbers(row: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
    """Ids as int32, the same where they were the same."""
    classes, _ = classes_of(torch.cat((row, column)))
    of_rows, of_columns = classes.int().split((len(row), len(column)))
    return of_rows, of_columns


class _Call:
    """The problem as the extension takes it, and the tensors that it points to."""

    def __init__(self, rows: Tensor, columns: Tensor | None, scale: Tensor, groups: Groups) -> None:
        self.rows = rows.float()
        self.columns = None if columns is None else columns.float()
        self.ids = _numbers(groups.row, groups.column)
        if groups.row_ignored is None or groups.column_ignored is None:
            self.ignored = tuple(torch.full_like(t, k) for k, t in enumerate(self.ids))
        else:
            self.ignored = _numbers(groups.row_ignored, groups.column_ignored)
        limit = torch.inf if groups.threshold is None else groups.threshold
        own = -len(rows) - 1 if groups.own is None else groups.own
        at = [t.data_ptr() for t in (*self.ids, *self.ignored)]
        self.arguments: tuple[Any, ...] = (
            *describe(self.rows, self.columns, scale, Pairing(0)),
            (*at, limit, own),
        )


def forward(
    rows: Tensor,
    columns: Tensor | None,
    scale: Tensor,
    groups: Groups,
    sides: bool,
    kept: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Log-sum-exps; see the package."""
    call = _Call(rows, columns, scale, groups)
    m, n = len(rows), len(columns) if sides and columns is not None else 0
    found = [torch.empty(k, dtype=torch.float64) for k in (m, m, n, n)]
    at = [t.data_ptr() if t.numel() else 0 for t in found]
    loaded().grouped_forward_cpu(*call.arguments, *at, *memory_of(kept))
    if sides and columns is None:
        found[2:] = [t.clone() for t in found[:2]]
    return tuple(found)


def backward(
    rows: Tensor,
    columns: Tensor | None,
    scale: Tensor,
    groups: Groups,
    row: Side,
    row_positive: Side,
    column: Side | None,
    column_positive: Side | None,
    columns_gradient: bool,
    kept: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Unscaled gradients; see the package."""
    call = _Call(rows, columns, scale, groups)
    u, v = torch.empty_like(call.rows), call.rows.new_empty(0)
    if columns_gradient and call.columns is not None:
        v = torch.empty_like(call.columns)
    sides = [side or (None, None) for side in (row, row_positive, column, column_positive)]
    # A list keeps contiguous copies alive until the call has returned.
    given = [[None if t is None else t.double().contiguous() for t in side] for side in sides]
    loaded().grouped_backward_cpu(
        *call.arguments,
        *(tuple(address(t) for t in side) for side in given),
        *memory_of(kept),
        u.data_ptr(),
        v.data_ptr() if v.numel() else 0,
    )
    return u, v
