"""C++ on the CPU (csrc/cpu/similarity_softmax.cpp): float32, AVX-512 or AVX2 where there."""

import torch
from torch import Tensor

from .._extension import cpu_unavailable, extension
from . import Pairing, Problem

DEVICE = "cpu"
PRIORITY = 30


available = cpu_unavailable


def supports(problem: Problem) -> str | None:
    """The symmetric form in up to float32."""
    if problem.dtype == torch.float64:
        return "computes in float32 and takes no float64"
    if not problem.symmetric:
        return "has no kernel yet for rows and columns that differ"
    return None


def _describe(rows: Tensor, scale: Tensor) -> tuple[int, int, int, float, int]:
    m, dim = rows.shape
    return rows.data_ptr(), m, dim, scale.item(), torch.get_num_threads()


def forward(
    rows: Tensor, columns: Tensor | None, scale: Tensor, pairing: Pairing, column_lse: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exps and positive logits; see the package."""
    rows = rows.float()
    lse, positive = rows.new_empty(len(rows)), rows.new_empty(len(rows))
    call = extension().symmetric_forward_cpu
    call(*_describe(rows, scale), lse.data_ptr(), positive.data_ptr())
    return lse, positive, lse.clone() if column_lse else rows.new_empty(0)


def backward(
    rows: Tensor,
    columns: Tensor | None,
    scale: Tensor,
    pairing: Pairing,
    row: tuple[Tensor, Tensor] | None,
    column: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """Unscaled gradient of the rows; see the package."""
    rows = rows.float()
    assert row is not None  # the symmetric form has the statistics of its rows
    lse, g = (t.contiguous() for t in row)
    gradient = torch.empty_like(rows)
    call = extension().symmetric_backward_cpu
    call(*_describe(rows, scale), lse.data_ptr(), g.data_ptr(), gradient.data_ptr())
    return gradient
