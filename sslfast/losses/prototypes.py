"""Cross-entropy between a teacher's and a student's softmax over prototypes."""

from typing import NamedTuple

import torch
from torch import Tensor

from sslfast.kernels.dtypes import FLOATS, accumulation_dtype
from sslfast.kernels.prototype_cross_entropy.op import prototype_losses, weighted_prototype_loss
from sslfast.losses._inputs import check_reduction, scale_of


def prototype_cross_entropy(
    student: Tensor,
    teacher: Tensor,
    weight: Tensor,
    teacher_weight: Tensor | None = None,
    *,
    student_temperature: float | Tensor = 0.1,
    teacher_temperature: float | Tensor = 0.04,
    teacher_bias: Tensor | None = None,
    pairs: Tensor | None = None,
    row_weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """The loss of DINO, iBOT, DINOv2, SwAV and MSN, without the N x K scores in memory.

    Of G samples the student has S views and the teacher T. With p and q the softmaxes of their
    scores with K prototypes,

        p = softmax(student weight' / student_temperature),
        q = softmax(teacher teacher_weight' / teacher_temperature + teacher_bias),

    the loss of a student's row is -sum_t pairs_st sum_k q_tgk log p_sgk (DINO, Caron et al. 2021,
    arXiv:2104.14294, equations 1 and 3; iBOT, arXiv:2111.07832, equation 2, with S = T = 1 and the
    masked patches as samples). No gradient flows to the teacher. With gradients 2 (3 S + T) G K D
    FLOP, formed in the forward pass but for "none".

    Args:
        student: features [S, G, D] of the same samples, or [G, D].
        teacher: [T, G, E], or [G, E].
        weight: the student's prototypes [K, D]; K up to 262,144 has been in use.
        teacher_weight: the teacher's [K, E]; None: those of the student.
        student_temperature: a number, or a tensor of one.
        teacher_temperature: likewise.
        teacher_bias: finite numbers [K], or [T, K] for each view, that keep all prototypes in use:
            -center / temperature for centring, ``sslfast.functional.sinkhorn`` for SwAV's codes.
        pairs: how much each view of the student weighs with each of the teacher [S, T]; None: 1.
        row_weight: [S, G], such as 1 / number of masked patches of an image; the loss is then the
            sum of the rows' losses times these.
        reduction: "mean" over samples and pairs, weighted; "sum"; or "none" for losses [S, G] (or
            [G]). With row_weight it is left at "mean".

    Returns:
        The loss in float32 (float64 for float64 features).

    Raises:
        TypeError: tensors that are not of a floating dtype.
        ValueError: shapes or devices that do not fit, a temperature of 0, nothing to compare.
    """
    found = compare_prototypes(
        student, teacher, weight, teacher_weight, student_temperature=student_temperature,
        teacher_temperature=teacher_temperature, teacher_bias=teacher_bias, pairs=pairs,
        row_weight=row_weight, reduction=reduction,
    )  # fmt: skip
    return found.loss


class Comparison(NamedTuple):
    """What a comparison of softmaxes finds.

    Attributes:
        loss: see ``prototype_cross_entropy``.
        entropy: of the teacher's softmaxes [T, G], without gradients.
        usage: their mean [K]: how much each prototype is used.
    """

    loss: Tensor
    entropy: Tensor
    usage: Tensor


def compare_prototypes(
    student: Tensor,
    teacher: Tensor,
    weight: Tensor,
    teacher_weight: Tensor | None = None,
    *,
    student_temperature: float | Tensor,
    teacher_temperature: float | Tensor,
    teacher_bias: Tensor | None = None,
    pairs: Tensor | None = None,
    row_weight: Tensor | None = None,
    reduction: str = "mean",
) -> Comparison:
    """``prototype_cross_entropy`` with the teacher's entropies and the use of its prototypes."""
    check_reduction(reduction)
    if row_weight is not None and reduction != "mean":
        raise ValueError("with row_weight the loss is the weighted sum: leave reduction out")
    of_teacher = weight.detach() if teacher_weight is None else teacher_weight
    _check(student, teacher, weight, of_teacher)
    single = student.dim() == 2
    student, teacher = (x[None] if x.dim() == 2 else x for x in (student, teacher))
    shape, dtype = (len(student), len(teacher)), accumulation_dtype(student.dtype)
    views, samples = student.shape[:2]
    scales = [scale_of(t, student).detach() for t in (student_temperature, teacher_temperature)]

    def given(name: str, x: Tensor | None, *wanted: int) -> Tensor | None:
        if x is None:
            return None
        if x.shape != wanted or x.device != student.device:
            raise ValueError(
                f"{name} must have shape {list(wanted)} on {student.device}, got {list(x.shape)} "
                f"on {x.device}"
            )
        return x.detach().to(dtype)

    if teacher_bias is not None and teacher_bias.dim() == 1:
        teacher_bias = teacher_bias.expand(len(teacher), -1)
    bias = given("teacher_bias", teacher_bias, len(teacher), len(weight))
    pairs = given("pairs", pairs, *shape)
    if pairs is None:
        pairs = torch.ones(shape, dtype=dtype, device=student.device)
    if row_weight is not None and single:
        row_weight = row_weight[None] if row_weight.dim() == 1 else row_weight
    weights = given("row_weight", row_weight, views, samples)
    device = student.device.type
    if torch.is_autocast_enabled(device) and student.dtype != torch.float64:
        student = student.to(torch.get_autocast_dtype(device))
    sides = student, weight, teacher.detach(), of_teacher.detach(), *scales, bias, pairs
    if reduction == "none":
        loss, entropy, usage = prototype_losses(*sides)
        return Comparison(loss[0] if single else loss, entropy, usage)
    if weights is None:
        weights = torch.ones(views, samples, dtype=dtype, device=student.device)
        if reduction == "mean":
            weights = weights / (samples * pairs.sum())
    wanted = torch.is_grad_enabled()
    loss, entropy, usage, *_ = weighted_prototype_loss(
        *sides, weights, wanted and student.requires_grad, wanted and weight.requires_grad
    )
    return Comparison(loss, entropy, usage)


def _check(student: Tensor, teacher: Tensor, weight: Tensor, teacher_weight: Tensor) -> None:
    given = {"student": student, "teacher": teacher, "weight": weight}
    for name, x in (given | {"teacher_weight": teacher_weight}).items():
        if not isinstance(x, Tensor) or x.dtype not in FLOATS:
            what = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"{name} must be a floating-point tensor, got {what}")
        if x.device != student.device:
            raise ValueError(f"student is on {student.device}, but {name} is on {x.device}")
        if x.numel() == 0:
            raise ValueError(f"{name} is empty: shape {list(x.shape)}")
        dims = (2, 3) if name in ("student", "teacher") else (2,)
        if x.dim() not in dims:
            wanted = "[views, G, D] or [G, D]" if len(dims) == 2 else "[K, D]"
            raise ValueError(f"{name} must have shape {wanted}, got {list(x.shape)}")
    for name, rows, prototypes in (
        ("student", student, weight),
        ("teacher", teacher, teacher_weight),
    ):
        if rows.shape[-1] != prototypes.shape[1]:
            raise ValueError(
                f"{name} {list(rows.shape)} and its prototypes {list(prototypes.shape)} must have "
                "the same last dimension"
            )
    if student.shape[-2] != teacher.shape[-2]:
        raise ValueError(
            "student and teacher must have views of the same samples, got "
            f"{student.shape[-2]} and {teacher.shape[-2]}"
        )
    if len(weight) != len(teacher_weight):
        raise ValueError(
            "student and teacher must have the same prototypes, got "
            f"{len(weight)} and {len(teacher_weight)}"
        )
