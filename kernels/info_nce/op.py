"""InfoNCE in one direction, with gradients formed in the forward pass: schema, fake, autograd.

The weighted sum of softplus(lse_i - positive_i) over rows, for weights that are known beforehand,
as in a mean. The gradients cannot wait for the backward pass: a queue has changed by then.

For N rows, K negatives and D features, two sets of kernels can do it:

- linear_cross_entropy, in which keys are classes and the positives' logits are given: 4 N K D FLOP,
  and 2 more for d_negatives. On a GPU blocks of logits lie in memory: 18 bytes a logit for 16-bit
  rows, 24 for float32.
- similarity_softmax: log-sum-exps, then a gradient for each side, from logits computed anew:
  6 N K D FLOP, and 4 more for d_negatives. No logits in memory.

The rule: the second for 16-bit rows on a GPU while a program can hold a whole gradient row
(D <= FUSED_DIM), else the first, whose products in float32 are cuBLAS's. Predicted for 16-bit rows
on an H100: the first's memory traffic takes 5.8 ps a logit, the second's additional products 0.45
ps at D = 128 and 0.8 at 256, twice that with d_negatives. Beyond, it would compute every logit
again for each further 256 features, and lose. On a CPU the logits of the first never leave the
cache.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sslfast.kernels import linear_cross_entropy, registry, similarity_softmax
from sslfast.kernels.dtypes import accumulation_dtype
from sslfast.kernels.library import NAMESPACE, refuse_double_backward, times
from sslfast.kernels.linear_cross_entropy import Wants
from sslfast.kernels.similarity_softmax import Pairing

FUSED_DIM = 256  # features of a gradient that one program of the fused kernels holds
Parts = tuple[Tensor, Tensor, Tensor, Tensor]


def runs_fused(rows: Tensor) -> bool:
    """Whether the kernels of similarity_softmax serve these rows [N, D] best: see the top."""
    return rows.is_cuda and rows.dtype.itemsize == 2 and rows.shape[1] <= FUSED_DIM


def _fused(x: Tensor, y: Tensor, positive: Tensor, row_weight: Tensor, both: bool) -> Parts:
    """By the similarity softmax, in which no column is a positive and the scale is 1."""
    none = Pairing(0)
    backend = registry.pick("similarity_softmax", similarity_softmax.problem(x, y, none))
    one = positive.new_ones(())
    lse, _, _ = backend.forward(x, y, one, none, column_lse=False)
    gap = lse - positive
    total = (row_weight * F.softplus(gap, threshold=40.0)).sum()
    share = row_weight * gap.sigmoid()
    d_rows = backend.backward(x, y, one, none, (lse, share), None)
    d_negatives = positive.new_empty(0)
    if both:
        d_negatives = backend.backward(y, x, one, none, None, (lse, share))
    return total.to(positive.dtype), d_rows, d_negatives, -share.to(positive.dtype)


def _by_blocks(x: Tensor, y: Tensor, positive: Tensor, row_weight: Tensor, both: bool) -> Parts:
    """By linear cross-entropy, in which a row's positive is a class of its own."""
    backend = registry.pick("linear_cross_entropy", linear_cross_entropy.problem(x, y))
    lse, _, d_rows, d_negatives, _ = backend.gradients(
        *(x, y, None, positive, row_weight),
        smoothing=0.0,
        wants=Wants(hidden=True, weight=both, bias=False),
    )
    gap = lse - positive
    total = (row_weight * F.softplus(gap, threshold=40.0)).sum()
    return total, d_rows, d_negatives, -row_weight * gap.sigmoid()


@torch.library.custom_op(f"{NAMESPACE}::weighted_info_nce", mutates_args=())
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
        all in the accumulation dtype.
    """
    run = _fused if runs_fused(rows) else _by_blocks
    tensors = rows.contiguous(), negatives.contiguous(), positive.contiguous(), row_weight
    with torch.autocast(rows.device.type, enabled=False):  # sums are never in half precision
        return run(*tensors, negatives_gradient)


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
