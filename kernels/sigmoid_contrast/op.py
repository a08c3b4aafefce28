"""Pairwise sigmoid loss: schema, fake, autograd -> a backend of the registry.

Two ops, as for linear_cross_entropy: losses of the rows, whose backward computes the logits
again, and their sum with weights known beforehand, which forms its gradients in the forward pass.
The maths is in kernels/sigmoid_contrast.
"""

from typing import Any

import torch
from torch import Tensor

from sslfast.kernels import registry
from sslfast.kernels import sigmoid_contrast as kernels
from sslfast.kernels.dtypes import accumulation_dtype
from sslfast.kernels.library import NAMESPACE, refuse_double_backward, times
from sslfast.kernels.similarity_softmax import Pairing

OP = "sigmoid_contrast"


def _prepare(
    rows: Tensor, columns: Tensor, column_base: int | None
) -> tuple[Tensor, Tensor, Pairing, Any]:
    pairing = Pairing(0)
    if column_base is not None:
        pairing = Pairing(len(rows), column_base=column_base)
    x, y = rows.contiguous(), columns.contiguous()
    return x, y, pairing, registry.pick(OP, kernels.problem(x, y, pairing))


@torch.library.custom_op(f"{NAMESPACE}::sigmoid_contrast", mutates_args=())
def sigmoid_contrast(
    rows: Tensor, columns: Tensor, scale: Tensor, bias: Tensor, column_base: int | None
) -> Tensor:
    """sum_j log(1 + exp(-z_ij (scale <x_i, y_j> + bias))) of every row.

    Args:
        rows: X [M, D], float16, bfloat16, float32 or float64.
        columns: Y [N, D] of the same dtype and device.
        scale: 0-d, of the accumulation dtype.
        bias: 0-d, of the accumulation dtype.
        column_base: the positive (z = 1) of row i is column ``column_base + i``; None: none is.

    Returns:
        Losses [M] in the accumulation dtype.
    """
    x, y, pairing, backend = _prepare(rows, columns, column_base)
    with torch.autocast(rows.device.type, enabled=False):  # sums are never in half precision
        return backend.forward(x, y, scale, bias, pairing)


@sigmoid_contrast.register_fake
def _(
    rows: Tensor, columns: Tensor, scale: Tensor, bias: Tensor, column_base: int | None
) -> Tensor:
    return rows.new_empty(rows.shape[0], dtype=accumulation_dtype(rows.dtype))


@torch.library.custom_op(f"{NAMESPACE}::weighted_sigmoid_contrast", mutates_args=())
def weighted_sigmoid_contrast(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    bias: Tensor,
    row_weight: Tensor,
    column_base: int | None,
    columns_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """sum_i row_weight_i loss_i and its gradients, formed where the logits are at hand.

    Arguments as above, and row_weight [M] in the accumulation dtype, to which no gradient flows.

    Returns:
        The sum, 0-d, and the gradients of rows, columns (empty where not asked for), scale and
        bias, all in the accumulation dtype.
    """
    x, y, pairing, backend = _prepare(rows, columns, column_base)
    with torch.autocast(rows.device.type, enabled=False):
        losses, u, v, d_bias = backend.gradients(
            x, y, scale, bias, pairing, row_weight, columns_gradient
        )
        d_scale = torch.linalg.vecdot(x.to(u.dtype), u).sum()
        total = (losses * row_weight).sum()
        return total, u.mul_(scale), v.mul_(scale), d_scale, d_bias.sum()


@weighted_sigmoid_contrast.register_fake
def _(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    bias: Tensor,
    row_weight: Tensor,
    column_base: int | None,
    columns_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dtype = accumulation_dtype(rows.dtype)
    return (
        rows.new_empty((), dtype=dtype),
        rows.new_empty(rows.shape, dtype=dtype),
        rows.new_empty(columns.shape if columns_gradient else (0,), dtype=dtype),
        rows.new_empty((), dtype=dtype),
        rows.new_empty((), dtype=dtype),
    )


def _setup_rows(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.column_base = inputs
    ctx.save_for_backward(*tensors)


def _backward_rows(ctx: Any, d_losses: Tensor) -> tuple[Tensor | None, ...]:
    rows, columns, scale, bias = ctx.saved_tensors
    columns_gradient = ctx.needs_input_grad[1]
    _, dx, dy, d_scale, d_bias = weighted_sigmoid_contrast(
        rows, columns, scale, bias, d_losses.contiguous(), ctx.column_base, columns_gradient
    )
    dy = dy.to(columns.dtype) if columns_gradient else None
    return dx.to(rows.dtype), dy, d_scale, d_bias, None


def _setup_sum(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.dtype = inputs[0].dtype
    ctx.save_for_backward(*output[1:])


def _backward_sum(
    ctx: Any, d_sum: Tensor | None, *d_gradients: Tensor | None
) -> tuple[Tensor | None, ...]:
    refuse_double_backward(d_gradients)
    if d_sum is None:
        return (None,) * 7
    dx, dy, d_scale, d_bias = ctx.saved_tensors
    d_columns = times(dy, d_sum, ctx.dtype) if ctx.needs_input_grad[1] else None
    d_rows = times(dx, d_sum, ctx.dtype)
    return d_rows, d_columns, d_scale * d_sum, d_bias * d_sum, None, None, None


sigmoid_contrast.register_autograd(_backward_rows, setup_context=_setup_rows)
weighted_sigmoid_contrast.register_autograd(_backward_sum, setup_context=_setup_sum)
