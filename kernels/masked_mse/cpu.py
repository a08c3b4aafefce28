"""C++ on the CPU (csrc/cpu/masked_mse.cpp), in float32."""

import torch
from torch import Tensor

from sslfast.kernels.extension import cpu_unavailable, loaded
from sslfast.kernels.masked_mse import Problem

DEVICE = "cpu"
PRIORITY = 30

available = cpu_unavailable


def supports(problem: Problem) -> str | None:
    """Everything in float32."""
    if problem.dtype != torch.float32:
        return f"takes float32, not {str(problem.dtype).removeprefix('torch.')}"
    return None


def forward(
    prediction: Tensor, target: Tensor, mask: Tensor, norm_target: bool, eps: float
) -> Tensor:
    """Losses of the rows; see the package."""
    prediction, target, mask = (t.contiguous() for t in (prediction, target, mask))
    loss = prediction.new_empty(len(prediction))
    loaded().masked_mse_cpu(
        prediction.data_ptr(),
        target.data_ptr(),
        mask.data_ptr(),
        *prediction.shape,
        norm_target,
        eps,
        torch.get_num_threads(),
        loss.data_ptr(),
    )
    return loss


def backward(
    gradient: Tensor,
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    norm_target: bool,
    eps: float,
    target_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of prediction and target; see the package."""
    prediction, target, mask = (t.contiguous() for t in (prediction, target, mask))
    gradient = gradient.contiguous()
    d_prediction = torch.empty_like(prediction)
    d_target = torch.empty_like(target) if target_gradient else target.new_empty(0)
    loaded().masked_mse_backward_cpu(
        prediction.data_ptr(),
        target.data_ptr(),
        mask.data_ptr(),
        *prediction.shape,
        norm_target,
        eps,
        torch.get_num_threads(),
        gradient.data_ptr(),
        d_prediction.data_ptr(),
        d_target.data_ptr() if target_gradient else 0,
    )
    return d_prediction, d_target
