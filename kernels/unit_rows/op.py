"""Vectors divided by their norms, in their own dtype: schema, fake, autograd.

Norms and quotients are taken in the accumulation dtype and rounded once, as they are written. On a
GPU 16-bit vectors then cost 4 bytes a number, one pass, and no copy of them in float32: neither
on the way nor kept for the backward pass, which has the vectors as they were given.
"""

from typing import Any

import torch
from torch import Tensor

from sslfast.kernels import registry
from sslfast.kernels import unit_rows as kernels
from sslfast.kernels.dtypes import accumulation_dtype
from sslfast.kernels.library import NAMESPACE, no_double_backward
from sslfast.kernels.unit_rows import EPS

OP = "unit_rows"


def unit_rows(x: Tensor) -> Tensor:
    """The vectors x / max(||x||, 1e-12) along the last dimension, in the dtype of x.

    Args:
        x: [..., D], float16, bfloat16, float32 or float64.
    """
    dtype = accumulation_dtype(x.dtype)
    if x.is_cuda and x.dtype != dtype:
        return _unit_rows(x)[0]
    return wide_unit_rows(x).to(x.dtype)  # on a CPU an op takes longer than a copy


def wide_unit_rows(x: Tensor) -> Tensor:
    """The same in the accumulation dtype, and differentiable as often as asked.

    It is F.normalize, but for the gradient of a vector no longer than EPS: 0, and not 1 / EPS times
    the upstream gradient, which would be the end of a training run.
    """
    wide = x.to(accumulation_dtype(x.dtype))
    norms = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    return torch.where(norms <= EPS, wide.detach(), wide) / norms.clamp_min(EPS)


@torch.library.custom_op(f"{NAMESPACE}::unit_rows", mutates_args=())
def _unit_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """The unit vectors of 16-bit ones, and their norms [..., 1] in float32."""
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    with torch.autocast(x.device.type, enabled=False):
        z, norms = registry.pick(OP, kernels.problem(rows)).normalize(rows)
    return z.view(x.shape), norms.view(*x.shape[:-1], 1)


@_unit_rows.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)


@torch.library.custom_op(f"{NAMESPACE}::unit_rows_backward", mutates_args=())
def _unit_rows_backward(gradient: Tensor, x: Tensor, norms: Tensor) -> Tensor:
    """(g - u <u, g>) / ||x|| with u = x / ||x||; 0 for a vector no longer than EPS."""
    with torch.autocast(x.device.type, enabled=False):
        along = (x.float() * gradient).sum(-1, keepdim=True)
        along /= norms.square()
        d_x = torch.addcmul(gradient, along, x, value=-1)  # in float32, as along is
        d_x.masked_fill_(norms <= EPS, 0)
        return torch.div(d_x, norms, out=x.new_empty(x.shape))


@_unit_rows_backward.register_fake
def _(gradient: Tensor, x: Tensor, norms: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[0], output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, gradient: Tensor, _: None) -> Tensor:
    return _unit_rows_backward(gradient, *ctx.saved_tensors)


_unit_rows.register_autograd(_backward, setup_context=_setup_context)
_unit_rows_backward.register_autograd(no_double_backward)
