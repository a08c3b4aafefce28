"""Masked mean squared error in Triton: one program a row, which stays in registers.

Forward reads 2 P elements of a hidden row and writes 4 bytes; backward reads 2 P and writes P (2 P
with the target's gradient). Rows that are not hidden are not read.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sslfast.kernels.gpu import DEVICE, unavailable
from sslfast.kernels.masked_mse import Problem

__all__ = ["DEVICE", "PRIORITY", "available", "backward", "forward"]

PRIORITY = 20
MOST = 16384

available = unavailable


def supports(problem: Problem) -> str | None:
    """Rows in up to float32 that fit in the registers of a program."""
    if problem.dtype == torch.float64:
        return "sums in float32 and takes no float64"
    if problem.dim > MOST:
        return f"takes patches of at most {MOST} numbers"
    return None


@triton.jit
def load_row(  # type: ignore[no-untyped-def]
    p_prediction, p_target, i_row, i_dim, m_load, eps,
    P: tl.constexpr, NORM_TARGET: tl.constexpr,
):  # fmt: skip
    """Return x - y, y and the scale of the normalisation; zeros where m_load is false."""
    x = tl.load(p_prediction + i_row * P + i_dim, mask=m_load, other=0.0).to(tl.float32)
    y = tl.load(p_target + i_row * P + i_dim, mask=m_load, other=0.0).to(tl.float32)
    scale = tl.full((), 1.0, tl.float32)
    if NORM_TARGET:
        y = tl.where(m_load, y - tl.sum(y) / P, 0.0)
        scale = 1.0 / tl.sqrt_rn(tl.sum(y * y) / (P - 1.0) + eps)
        y *= scale
    return tl.where(m_load, x - y, 0.0), y, scale


@triton.jit
def forward_kernel(  # type: ignore[no-untyped-def]
    p_prediction, p_target, p_mask, p_loss, eps,
    P: tl.constexpr, BLOCK: tl.constexpr, NORM_TARGET: tl.constexpr,
):  # fmt: skip
    """The loss of one row."""
    i_row, i_dim = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    hidden = tl.load(p_mask + i_row) != 0
    loss = tl.zeros((), tl.float32)
    if hidden:
        d, _, _ = load_row(p_prediction, p_target, i_row, i_dim, i_dim < P, eps, P, NORM_TARGET)
        loss = tl.sum(d * d) / P
    tl.store(p_loss + i_row, loss)


@triton.jit
def backward_kernel(  # type: ignore[no-untyped-def]
    p_gradient, p_prediction, p_target, p_mask, p_d_prediction, p_d_target, eps,
    P: tl.constexpr, BLOCK: tl.constexpr, NORM_TARGET: tl.constexpr,
):  # fmt: skip
    """The gradients of one row."""
    i_row, i_dim = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    m_dim = i_dim < P
    hidden = tl.load(p_mask + i_row) != 0
    dx = tl.zeros((BLOCK,), tl.float32)
    dt = tl.zeros((BLOCK,), tl.float32)
    if hidden:
        d, y, scale = load_row(p_prediction, p_target, i_row, i_dim, m_dim, eps, P, NORM_TARGET)
        dx = d * (2.0 / P * tl.load(p_gradient + i_row))
        dt = -dx
        if NORM_TARGET:
            along = tl.sum(dx * y) / (P - 1.0)
            dt = -scale * (dx - tl.sum(dx) / P - y * along)
    tl.store(p_d_prediction + i_row * P + i_dim, dx, mask=m_dim)
    if p_d_target is not None:
        tl.store(p_d_target + i_row * P + i_dim, dt, mask=m_dim)


def _settings(dim: int, norm_target: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    block = max(triton.next_power_of_2(dim), 16)
    constants = {"P": dim, "BLOCK": block, "NORM_TARGET": norm_target}
    return constants, {"num_warps": min(max(block // 256, 1), 16), "enable_fp_fusion": True}


def forward(
    prediction: Tensor, target: Tensor, mask: Tensor, norm_target: bool, eps: float
) -> Tensor:
    """Losses of the rows; see the package."""
    prediction, target, mask = (t.contiguous() for t in (prediction, target, mask))
    loss = prediction.new_empty(len(prediction), dtype=torch.float32)
    if len(loss):
        constants, options = _settings(prediction.shape[1], norm_target)
        with torch.cuda.device_of(prediction):
            forward_kernel[(len(loss),)](
                prediction, target, mask, loss, eps, **constants, **options
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
    if d_prediction.numel():
        constants, options = _settings(prediction.shape[1], norm_target)
        with torch.cuda.device_of(prediction):
            backward_kernel[(len(prediction),)](
                gradient, prediction, target, mask, d_prediction,
                d_target if target_gradient else None, eps, **constants, **options,
            )  # fmt: skip
    return d_prediction, d_target
