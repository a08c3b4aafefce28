"""InfoNCE in one direction, with gradients formed in the forward pass: schema, fake, autograd.

The weighted sum of softplus(lse_i - positive_i) over rows, for weights that are known beforehand,
as in a mean. It runs on the kernels of linear_cross_entropy: keys are classes, and a row's positive
is a class of its own, whose logit is given.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sslfast.kernels import linear_cross_entropy as kernels
from sslfast.kernels import registry
from sslfast.kernels.linear_cross_entropy import Wants
from sslfast.kernels.similarity_softmax import accumulation_dtype

from ._gradients import refuse_double_backward, times

OP = "linear_cross_entropy"


@torch.library.custom_op("sslfast::weighted_info_nce", mutates_args=())
def weighted_info_nce(
    rows: Tensor, negatives: Tensor, positive: Tensor, row_weight: Tensor, negatives_gradient: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """sum_i row_weight_i log(1 + sum_j exp(<rows_i, negatives_j> - positive_i)), and its gradients.

    Args:
        rows: [N, D], float16, bfloat16, float32 or float64; the scale is in them already.
        negatives: [K, D] of the same dtype and device.
        positive: logits of the positives [N], in the accumulation dtype.
        row_weight: [N], in the accumulation dtype; no gradient flows to it.
        negatives_gradient: whether the backward pass will need that of the negatives.

    Returns:
        The sum, 0-d, and the gradients of rows, negatives (empty where not needed) and positive,
        all in the accumulation dtype. 4 N K D FLOP, and 2 more for the gradient of negatives.
    """
    x, y = rows.contiguous(), negatives.contiguous()
    backend = registry.pick(OP, kernels.problem(x, y))
    wants = Wants(True, negatives_gradient, False)
    with torch.autocast(rows.device.type, enabled=False):  # sums are never in half precision
        lse, _, d_rows, d_negatives, _ = backend.gradients(
            x, y, None, positive.contiguous(), row_weight, 0.0, wants
        )
        gap = lse - positive
        total = (row_weight * F.softplus(gap, threshold=40.0)).sum()
        return total, d_rows, d_negatives, -row_weight * gap.sigmoid()


@weighted_info_nce.register_fake
def _(
    rows: Tensor, negatives: Tensor, positive: Tensor, row_weight: Tensor, negatives_gradient: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = accumulation_dtype(rows.dtype)
    return (
        rows.new_empty((), dtype=dtype),
        rows.new_empty(rows.shape, dtype=dtype),
        rows.new_empty(negatives.shape if negatives_gradient else (0,), dtype=dtype),
        torch.empty_like(positive),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.dtype = inputs[0].dtype
    ctx.save_for_backward(*output[1:])


def _backward(
    ctx: Any, d_sum: Tensor | None, *d_gradients: Tensor | None
) -> tuple[Tensor | None, ...]:
    refuse_double_backward(d_gradients)
    if d_sum is None:
        return (None,) * 5
    d_rows, d_negatives, d_positive = ctx.saved_tensors
    return (
        times(d_rows, d_sum, ctx.dtype),
        times(d_negatives, d_sum, ctx.dtype) if ctx.needs_input_grad[1] else None,
        d_positive * d_sum,
        None,
        None,
    )


weighted_info_nce.register_autograd(_backward, setup_context=_setup_context)
