"""C++ on the CPU (csrc/cpu/restore_with_tokens.cpp), in float32."""

import torch
from torch import Tensor

from sslfast.kernels.extension import cpu_unavailable, loaded
from sslfast.kernels.restore_with_tokens import Problem, check_ids, outside

DEVICE = "cpu"
PRIORITY = 30

available = cpu_unavailable


def supports(problem: Problem) -> str | None:
    """Everything in float32."""
    if problem.dtype != torch.float32:
        return f"takes float32, not {str(problem.dtype).removeprefix('torch.')}"
    return None


def forward(
    visible: Tensor, token: Tensor, ids_restore: Tensor, positions: Tensor | None
) -> Tensor:
    """Decoder input; see the package."""
    visible, token, ids_restore = (t.contiguous() for t in (visible, token, ids_restore))
    positions = None if positions is None else positions.contiguous()
    (batch, keep, dim), length = visible.shape, ids_restore.shape[1]
    out = visible.new_empty(batch, length, dim)
    inside = loaded().restore_with_tokens_cpu(
        visible.data_ptr(),
        token.data_ptr(),
        ids_restore.data_ptr(),
        0 if positions is None else positions.data_ptr(),
        batch,
        length,
        keep,
        dim,
        out.data_ptr(),
        torch.get_num_threads(),
    )
    if not inside:
        raise IndexError(outside(length))
    return out


def backward(gradient: Tensor, ids_restore: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Gradients of encoded rows and token; see the package."""
    check_ids(ids_restore)
    gradient, ids_restore = gradient.contiguous(), ids_restore.contiguous()
    batch, length, dim = gradient.shape
    d_visible, d_token = gradient.new_empty(batch, keep, dim), gradient.new_empty(batch, dim)
    loaded().restore_with_tokens_backward_cpu(
        gradient.data_ptr(),
        ids_restore.data_ptr(),
        batch,
        length,
        keep,
        dim,
        d_visible.data_ptr(),
        d_token.data_ptr(),
        torch.get_num_threads(),
    )
    return d_visible, d_token.sum(0)
