"""Masked mean squared error: torch.library schema, fake, autograd -> a backend of the registry."""

from typing import Any

import torch
from torch import Tensor

from sslfast.kernels import registry
from sslfast.kernels.dtypes import accumulation_dtype
from sslfast.kernels.library import NAMESPACE, no_double_backward
from sslfast.kernels.masked_mse import problem

OP = "masked_mse"


@torch.library.custom_op(f"{NAMESPACE}::masked_mse", mutates_args=())
def masked_mse(
    prediction: Tensor, target: Tensor, mask: Tensor, norm_target: bool, eps: float
) -> Tensor:
    """Mean squared error of each hidden row, 0 for the others.

    Args:
        prediction: [N, P], any floating dtype.
        target: [N, P] of the same dtype.
        mask: bool [N], true = hidden.
        norm_target: take the target's rows minus their mean, over their standard deviation.
        eps: added to the variance.

    Returns:
        [N] in the accumulation dtype (float32, or float64 for float64).
    """
    backend = registry.pick(OP, problem(prediction))
    return backend.forward(prediction, target, mask, norm_target, eps)


@masked_mse.register_fake
def _(prediction: Tensor, target: Tensor, mask: Tensor, norm_target: bool, eps: float) -> Tensor:
    dtype = accumulation_dtype(prediction.dtype)
    return prediction.new_empty(prediction.shape[0], dtype=dtype)


@torch.library.custom_op(f"{NAMESPACE}::masked_mse_backward", mutates_args=())
def masked_mse_backward(
    gradient: Tensor,
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    norm_target: bool,
    eps: float,
    target_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of prediction and target (empty where not asked for)."""
    backend = registry.pick(OP, problem(prediction))
    return backend.backward(gradient, prediction, target, mask, norm_target, eps, target_gradient)


@masked_mse_backward.register_fake
def _(
    gradient: Tensor,
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    norm_target: bool,
    eps: float,
    target_gradient: bool,
) -> tuple[Tensor, Tensor]:
    empty = target.new_empty(target.shape if target_gradient else (0,))
    return prediction.new_empty(prediction.shape), empty


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    prediction, target, mask, ctx.norm_target, ctx.eps = inputs
    ctx.save_for_backward(prediction, target, mask)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    wanted = ctx.needs_input_grad[1]
    arguments = (*ctx.saved_tensors, ctx.norm_target, ctx.eps, wanted)
    d_prediction, d_target = masked_mse_backward(gradient.contiguous(), *arguments)
    return d_prediction, d_target if wanted else None, None, None, None


masked_mse.register_autograd(_backward, setup_context=_setup_context)
masked_mse_backward.register_autograd(no_double_backward)
