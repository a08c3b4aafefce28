"""Cross-entropy over the classes of a linear layer: schema, fake, autograd -> a backend.

Two ops. ``linear_cross_entropy`` is the primitive: a loss for every row, whose backward computes
the logits again. ``weighted_linear_cross_entropy`` is their sum with weights that are known
beforehand, as in a mean: it forms the gradients in the forward pass, from the same logits, and its
backward only multiplies them with the upstream gradient. The maths is in
kernels/linear_cross_entropy.
"""

from typing import Any

import torch
from torch import Tensor

from sslfast.kernels import linear_cross_entropy as kernels
from sslfast.kernels import registry
from sslfast.kernels.dtypes import accumulation_dtype
from sslfast.kernels.library import NAMESPACE, refuse_double_backward, times
from sslfast.kernels.linear_cross_entropy import Wants
from sslfast.kernels.similarity_softmax import info_nce_from_logits

OP = "linear_cross_entropy"
Gradients = tuple[Tensor, Tensor, Tensor]


def _losses(
    lse: Tensor, target_logit: Tensor, mean_logit: Tensor | None, smoothing: float
) -> Tensor:
    """Losses of rows from their statistics, exact where the target's probability is near 1."""
    losses = info_nce_from_logits(lse, target_logit, unit=False)
    return losses if mean_logit is None else losses + smoothing * (target_logit - mean_logit)


def _run(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    ignore_index: int,
    smoothing: float,
    row_weight: Tensor | None,
    wants: Wants,
    softcap: float | None,
) -> tuple[Tensor, Gradients]:
    """Losses of all rows, 0 where ignored, and the gradients of their weighted sum if asked for."""
    if smoothing and softcap is not None:
        raise ValueError("a softcap takes no smoothing: the mean of capped logits is not at hand")
    x, w = hidden.contiguous(), weight.to(hidden.dtype).contiguous()
    b = None if bias is None else bias.to(hidden.dtype).contiguous()
    v, n = len(w), len(x)
    dtype = accumulation_dtype(x.dtype)
    used = targets != ignore_index
    inside = (targets >= 0) & (targets < v)
    rows = None
    if targets.device.type == "cpu":  # reading values is free here, and ignored rows cost nothing
        if not bool((inside | ~used).all()):
            wrong = targets[used & ~inside][0].item()
            raise IndexError(f"target {wrong} is out of bounds: there are {v} classes")
        rows = None if bool(used.all()) else used.nonzero().squeeze(1)
    if rows is not None:
        x, y = x[rows], targets[rows]
        row_weight = None if row_weight is None else row_weight[rows]
    else:
        y = targets.where(inside, 0).contiguous()
        row_weight = None if row_weight is None else row_weight * used
    with torch.autocast(hidden.device.type, enabled=False):  # sums are never in half precision
        backend = registry.pick(OP, kernels.problem(x, w))
        if row_weight is None:
            lse, target_logit = backend.forward(x, w, b, y, softcap)
            gradients = (lse.new_empty(0),) * 3
        else:
            lse, target_logit, *rest = backend.gradients(
                x, w, b, y, row_weight, smoothing, wants, softcap
            )
            gradients = (rest[0], rest[1], rest[2])
        mean_logit = None
        if smoothing:
            mean_logit = x.to(dtype) @ w.mean(0, dtype=dtype)
            if b is not None:
                mean_logit += b.mean(dtype=dtype)
        losses = _losses(lse, target_logit, mean_logit, smoothing)
    if rows is not None:
        losses = losses.new_zeros(n).index_copy_(0, rows, losses)
        if wants.hidden and row_weight is not None:
            d_hidden = gradients[0].new_zeros(n, x.shape[1]).index_copy_(0, rows, gradients[0])
            gradients = (d_hidden, *gradients[1:])
    else:
        # A target that is no class cannot raise on a GPU: it is seen as NaN.
        losses = losses.where(inside, torch.nan).where(used, 0)
    return losses, gradients


@torch.library.custom_op(f"{NAMESPACE}::linear_cross_entropy", mutates_args=())
def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    ignore_index: int,
    smoothing: float,
    softcap: float | None = None,
) -> Tensor:
    """-log softmax(hidden weight^T + bias) of every row's target.

    Args:
        hidden: [N, D], float16, bfloat16, float32 or float64.
        weight: [V, D], of any of these; used in the dtype of hidden.
        bias: [V] or None.
        targets: int64 [N]: a class, or ignore_index.
        ignore_index: the target of rows that have no loss.
        smoothing: the share of the target's probability that is spread over all classes.
        softcap: logits t become softcap tanh(t / softcap), without smoothing; None: as they are.

    Returns:
        Losses [N] in the accumulation dtype, 0 where ignored.
    """
    none = Wants(hidden=False, weight=False, bias=False)
    return _run(hidden, weight, bias, targets, ignore_index, smoothing, None, none, softcap)[0]


@linear_cross_entropy.register_fake
def _(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    ignore_index: int,
    smoothing: float,
    softcap: float | None = None,
) -> Tensor:
    return hidden.new_empty(hidden.shape[0], dtype=accumulation_dtype(hidden.dtype))


@torch.library.custom_op(f"{NAMESPACE}::weighted_linear_cross_entropy", mutates_args=())
def weighted_linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    row_weight: Tensor,
    ignore_index: int,
    smoothing: float,
    hidden_gradient: bool,
    weight_gradient: bool,
    bias_gradient: bool,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """sum_i row_weight_i loss_i and its gradients, formed where the logits are at hand.

    Arguments as above, and row_weight [N] in the accumulation dtype, to which no gradient flows;
    hidden_gradient, weight_gradient, bias_gradient say what the backward pass will need.

    Returns:
        The sum, 0-d, and the gradients [N, D], [V, D], [V] (empty where not needed), all in the
        accumulation dtype, so that gradient scaling comes before any rounding to half precision.
    """
    wants = Wants(hidden_gradient, weight_gradient, bias_gradient)
    losses, gradients = _run(
        hidden, weight, bias, targets, ignore_index, smoothing, row_weight, wants, softcap
    )
    return (losses * row_weight).sum(), *gradients


@weighted_linear_cross_entropy.register_fake
def _(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    row_weight: Tensor,
    ignore_index: int,
    smoothing: float,
    hidden_gradient: bool,
    weight_gradient: bool,
    bias_gradient: bool,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = accumulation_dtype(hidden.dtype)
    none = hidden.new_empty(0, dtype=dtype)
    return (
        hidden.new_empty((), dtype=dtype),
        hidden.new_empty(hidden.shape, dtype=dtype) if hidden_gradient else none,
        hidden.new_empty(weight.shape, dtype=dtype) if weight_gradient else none.clone(),
        hidden.new_empty(weight.shape[0], dtype=dtype) if bias_gradient else none.clone(),
    )


def _setup_rows(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    hidden, weight, bias, targets, *ctx.options, ctx.softcap = inputs
    ctx.save_for_backward(hidden, weight, bias, targets)


def _backward_rows(ctx: Any, d_losses: Tensor) -> tuple[Tensor | None, ...]:
    hidden, weight, bias, targets = ctx.saved_tensors
    needs = ctx.needs_input_grad[:3]
    _, *gradients = weighted_linear_cross_entropy(
        hidden, weight, bias, targets, d_losses.contiguous(), *ctx.options, *needs, ctx.softcap
    )
    return *_as_inputs(gradients, (hidden, weight, bias), needs, None), *[None] * 4


def _setup_sum(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.dtypes = [None if x is None else x.dtype for x in inputs[:3]]
    ctx.save_for_backward(*output[1:])


def _backward_sum(
    ctx: Any, d_sum: Tensor | None, *d_gradients: Tensor | None
) -> tuple[Tensor | None, ...]:
    refuse_double_backward(d_gradients)
    if d_sum is None:
        return (None,) * 11
    needs = ctx.needs_input_grad[:3]
    gradients = _as_inputs(ctx.saved_tensors, ctx.dtypes, needs, d_sum)
    return *gradients, *[None] * 8


def _as_inputs(
    gradients: Any, inputs: Any, needs: tuple[bool, ...], factor: Tensor | None
) -> tuple[Tensor | None, ...]:
    """The needed gradients times the factor, each in the dtype of its input."""
    found: list[Tensor | None] = []
    for gradient, like, needed in zip(gradients, inputs, needs, strict=True):
        if not needed:
            found.append(None)
            continue
        dtype = like if isinstance(like, torch.dtype) else like.dtype
        found.append(gradient.to(dtype) if factor is None else times(gradient, factor, dtype))
    return tuple(found)


linear_cross_entropy.register_autograd(_backward_rows, setup_context=_setup_rows)
weighted_linear_cross_entropy.register_autograd(_backward_sum, setup_context=_setup_sum)
