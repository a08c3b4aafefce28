"""Cross-entropy between softmaxes over prototypes: schema, fake, autograd -> a backend.

Two ops, as of the cross-entropy over classes. ``prototype_losses`` is the primitive: a loss for
every row, whose backward computes the scores again. ``weighted_prototype_loss`` is their sum with
weights that are known beforehand, as in a mean: it forms the gradients in the forward pass, from
the same scores, and its backward only multiplies them with the upstream gradient. The maths is in
kernels/prototype_cross_entropy.
"""

from typing import Any

import torch
from torch import Tensor

from sslfast.kernels import prototype_cross_entropy as kernels
from sslfast.kernels import registry
from sslfast.kernels.dtypes import accumulation_dtype
from sslfast.kernels.library import NAMESPACE, refuse_double_backward, times
from sslfast.kernels.prototype_cross_entropy import Results, Side, Wants

OP = "prototype_cross_entropy"
NONE = Wants(rows=False, weight=False)


def _run(
    student: Tensor,
    weight: Tensor,
    teacher: Tensor,
    teacher_weight: Tensor,
    student_scale: Tensor,
    teacher_scale: Tensor,
    bias: Tensor | None,
    pairs: Tensor,
    row_weight: Tensor | None,
    wants: Wants,
) -> Results:
    dtype = student.dtype
    x, w, y, v = (t.to(dtype).contiguous() for t in (student, weight, teacher, teacher_weight))
    with torch.autocast(student.device.type, enabled=False):  # sums are never in half precision
        backend = registry.pick(OP, kernels.problem(x, y, w))
        sides = Side(x, w, student_scale), Side(y, v, teacher_scale, bias)
        return backend.losses(*sides, pairs, row_weight, wants)


@torch.library.custom_op(f"{NAMESPACE}::prototype_losses", mutates_args=())
def prototype_losses(
    student: Tensor,
    weight: Tensor,
    teacher: Tensor,
    teacher_weight: Tensor,
    student_scale: Tensor,
    teacher_scale: Tensor,
    bias: Tensor | None,
    pairs: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy of every view of the student with those of the teacher, weighted by pairs.

    Args:
        student: rows [S, G, D], float16, bfloat16, float32 or float64.
        weight: prototypes [K, D], of any of these; used in the dtype of student, as what follows.
        teacher: rows [T, G, E], to which no gradient flows, nor to what follows.
        teacher_weight: [K, E].
        student_scale: 1 / temperature, 0-d, in the accumulation dtype, as all that follow are.
        teacher_scale: likewise.
        bias: [T, K], added to the scores of each of the teacher's views, or None.
        pairs: [S, T].

    Returns:
        Losses [S, G], entropies of the teacher's softmaxes [T, G] and their mean [K], in the
        accumulation dtype.
    """
    sides = student, weight, teacher, teacher_weight, student_scale, teacher_scale, bias, pairs
    return _run(*sides, None, NONE)[:3]


@prototype_losses.register_fake
def _(
    student: Tensor,
    weight: Tensor,
    teacher: Tensor,
    teacher_weight: Tensor,
    student_scale: Tensor,
    teacher_scale: Tensor,
    bias: Tensor | None,
    pairs: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = accumulation_dtype(student.dtype)
    shapes = student.shape[:2], teacher.shape[:2], weight.shape[:1]
    loss, entropy, usage = (student.new_empty(shape, dtype=dtype) for shape in shapes)
    return loss, entropy, usage


@torch.library.custom_op(f"{NAMESPACE}::weighted_prototype_loss", mutates_args=())
def weighted_prototype_loss(
    student: Tensor,
    weight: Tensor,
    teacher: Tensor,
    teacher_weight: Tensor,
    student_scale: Tensor,
    teacher_scale: Tensor,
    bias: Tensor | None,
    pairs: Tensor,
    row_weight: Tensor,
    rows_gradient: bool,
    weight_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """sum_sg row_weight_sg loss_sg and its gradients, formed where the scores are at hand.

    Arguments as above, and row_weight [S, G] in the accumulation dtype, to which no gradient flows;
    rows_gradient and weight_gradient say what the backward pass will need.

    Returns:
        The sum, 0-d, entropies [T, G] and usage [K] as above, and the gradients to student and
        weight (empty where not needed), all in the accumulation dtype.
    """
    wants = Wants(rows_gradient, weight_gradient)
    sides = student, weight, teacher, teacher_weight, student_scale, teacher_scale, bias, pairs
    loss, *rest = _run(*sides, row_weight, wants)
    return (loss * row_weight).sum(), rest[0], rest[1], rest[2], rest[3]


@weighted_prototype_loss.register_fake
def _(
    student: Tensor,
    weight: Tensor,
    teacher: Tensor,
    teacher_weight: Tensor,
    student_scale: Tensor,
    teacher_scale: Tensor,
    bias: Tensor | None,
    pairs: Tensor,
    row_weight: Tensor,
    rows_gradient: bool,
    weight_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dtype = accumulation_dtype(student.dtype)
    return (
        student.new_empty((), dtype=dtype),
        student.new_empty(teacher.shape[:2], dtype=dtype),
        student.new_empty(weight.shape[:1], dtype=dtype),
        student.new_empty(student.shape if rows_gradient else (0,), dtype=dtype),
        student.new_empty(weight.shape if weight_gradient else (0,), dtype=dtype),
    )


def _setup_rows(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*inputs)


def _backward_rows(ctx: Any, d_losses: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    inputs, needs = ctx.saved_tensors, ctx.needs_input_grad[:2]
    found = weighted_prototype_loss(*inputs, d_losses.contiguous(), *needs)
    gradients = (
        gradient.to(like.dtype) if needed else None
        for gradient, like, needed in zip(found[3:], inputs, needs, strict=False)
    )
    return *gradients, *[None] * 6


def _setup_sum(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:3])
    ctx.dtypes = [x.dtype for x in inputs[:2]]
    ctx.save_for_backward(*output[3:])


def _backward_sum(
    ctx: Any, d_sum: Tensor | None, _: None, __: None, *d_gradients: Tensor | None
) -> tuple[Tensor | None, ...]:
    refuse_double_backward(d_gradients)
    if d_sum is None:
        return (None,) * 11
    gradients = (
        times(gradient, d_sum, dtype) if needed else None
        for gradient, dtype, needed in zip(
            ctx.saved_tensors, ctx.dtypes, ctx.needs_input_grad, strict=False
        )
    )
    return *gradients, *[None] * 9


prototype_losses.register_autograd(_backward_rows, setup_context=_setup_rows)
weighted_prototype_loss.register_autograd(_backward_sum, setup_context=_setup_sum)
