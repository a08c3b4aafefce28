"""CUDA C++ (csrc/cuda/similarity_*.cu): the tensor cores of sm_80 and later, row-stationary tiles.

The column-wise log-sum-exps and gradients come from the transposed problem. Results are the same
from run to run on one kind of GPU; how the columns are split depends on its multiprocessors.
"""

from dataclasses import astuple, replace
from typing import Any

import torch
from torch import Tensor

from sslfast.kernels.extension import cuda_unavailable, loaded
from sslfast.kernels.similarity_softmax import Features, Pairing, Problem

DEVICE = "cuda"
FEATURES = Features()

# Compute capability -> the file of benchmarks/results whose GPU tests passed and in which this
# backend is faster than Triton. Empty: no GPU has run it yet.
PROVEN: dict[tuple[int, int], str] = {}


def _priority() -> int:
    """Above Triton (20) where a results file proves it for every GPU of this machine."""
    if not PROVEN or not torch.cuda.is_available():
        return 5
    devices = range(torch.cuda.device_count())
    return 25 if all(torch.cuda.get_device_capability(d) in PROVEN for d in devices) else 5


PRIORITY = _priority()

_ARITHMETIC = {torch.bfloat16: 0, torch.float16: 1}  # as Arithmetic in csrc/include/sslfast/cuda.h
_TF32, _IEEE = 2, 3


def available() -> str | None:
    """Why this backend can never run here, or None."""
    reason = cuda_unavailable()
    if reason is None and torch.cuda.get_device_capability() < (8, 0):
        return "needs a GPU of compute capability 8.0 or later"
    return reason


def supports(problem: Problem) -> str | None:
    """Everything in up to float32, with fewer than 2^31 rows and columns."""
    if problem.dtype != torch.float32 and problem.dtype not in _ARITHMETIC:
        return (
            f"takes float16, bfloat16 and float32, not {str(problem.dtype).removeprefix('torch.')}"
        )
    if max(problem.rows, problem.columns) >= 2**31 - 4096:
        return "takes fewer than 2^31 - 4096 rows and columns"
    return None


def _arithmetic(dtype: torch.dtype) -> int:
    if dtype != torch.float32:
        return _ARITHMETIC[dtype]
    return _TF32 if torch.backends.cuda.matmul.fp32_precision == "tf32" else _IEEE


def _describe(rows: Tensor, columns: Tensor, scale: Tensor, pairing: Pairing) -> tuple[Any, ...]:
    """The problem as the extension takes it; pairing fields are in the order of its class."""
    m, dim = rows.shape
    shift = pairing.shift % pairing.length if pairing.length else 0
    fields = astuple(replace(pairing, shift=shift))
    return (
        _arithmetic(rows.dtype), rows.data_ptr(), m, columns.data_ptr(), len(columns), dim,
        scale.data_ptr(), fields,
    )  # fmt: skip


def _row_statistics(
    rows: Tensor, columns: Tensor, scale: Tensor, pairing: Pairing
) -> tuple[Tensor, Tensor]:
    lse, positive = scale.new_empty(len(rows)), scale.new_empty(len(rows))
    problem = _describe(rows, columns, scale, pairing)
    with torch.cuda.device(rows.device):
        workspace = scale.new_empty(loaded().similarity_workspace_cuda(problem, False))
        loaded().similarity_forward_cuda(
            problem,
            lse.data_ptr(),
            positive.data_ptr(),
            workspace.data_ptr(),
            torch.cuda.current_stream().cuda_stream,
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

    For 16-bit inputs and TF32 the weights G_ij are rounded to that format before they multiply the
    columns.
    """
    if row is None and column is None:
        return torch.zeros_like(rows, dtype=scale.dtype)
    d_rows = torch.empty_like(rows, dtype=scale.dtype)
    # A list keeps contiguous copies alive until the call has returned.
    sides = [side or (None, None) for side in (row, column)]
    statistics = [None if t is None else t.contiguous() for side in sides for t in side]
    problem = _describe(rows, rows if columns is None else columns, scale, pairing)
    with torch.cuda.device(rows.device):
        workspace = scale.new_empty(loaded().similarity_workspace_cuda(problem, True))
        loaded().similarity_backward_cuda(
            problem,
            *(0 if t is None else t.data_ptr() for t in statistics),
            d_rows.data_ptr(),
            workspace.data_ptr(),
            torch.cuda.current_stream().cuda_stream,
        )
    return d_rows
