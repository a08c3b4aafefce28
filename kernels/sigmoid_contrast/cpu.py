"""C++ on the CPU (csrc/cpu/sigmoid_contrast.cpp): float32, AVX-512 or AVX2 where there."""

import torch
from torch import Tensor

from sslfast.kernels.extension import address, cpu_unavailable, loaded
from sslfast.kernels.sigmoid_contrast import Problem
from sslfast.kernels.similarity_softmax import Pairing
from sslfast.kernels.similarity_softmax.cpu import describe

DEVICE = "cpu"
PRIORITY = 30

available = cpu_unavailable


def supports(problem: Problem) -> str | None:
    """Anything in up to float32."""
    if problem.dtype == torch.float64:
        return "computes in float32 and takes no float64"
    return None


def forward(rows: Tensor, columns: Tensor, scale: Tensor, bias: Tensor, pairing: Pairing) -> Tensor:
    """Losses of the rows; see the package."""
    rows, columns = rows.float(), columns.float()
    loss = rows.new_empty(len(rows))
    problem = describe(rows, columns, scale, pairing)
    loaded().sigmoid_contrast_cpu(*problem, bias.item(), 0, loss.data_ptr(), 0, 0, 0)
    return loss


def gradients(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    bias: Tensor,
    pairing: Pairing,
    row_weight: Tensor,
    columns_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses and gradients; see the package."""
    rows, columns, row_weight = rows.float(), columns.float(), row_weight.contiguous()
    loss, d_bias = rows.new_empty(len(rows)), rows.new_empty(len(rows))
    u = torch.empty_like(rows)
    v = torch.empty_like(columns) if columns_gradient else rows.new_empty(0)
    loaded().sigmoid_contrast_cpu(
        *describe(rows, columns, scale, pairing),
        bias.item(),
        row_weight.data_ptr(),
        loss.data_ptr(),
        u.data_ptr(),
        address(v if columns_gradient else None),
        d_bias.data_ptr(),
    )
    return loss, u, v, d_bias
