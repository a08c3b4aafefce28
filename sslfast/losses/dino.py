"""The loss of DINO; its class has the constructor and forward of lightly's."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sslfast._arguments import NonNegativeInt, PositiveFloat, Probability, Width, checked
from sslfast.kernels.dtypes import accumulation_dtype
from sslfast.kernels.exchange import mean_over_ranks
from sslfast.losses._center import check_prototypes, follow, of_scores, shift, stacked
from sslfast.losses._inputs import scale_of
from sslfast.losses.prototypes import Comparison, compare_prototypes


def linear_warmup(start: float, end: float, steps: int, epoch: int) -> float:
    """The value of an epoch: from ``start`` in the first to ``end`` in the last of ``steps``."""
    if epoch >= steps - 1:
        return end if epoch >= steps or steps > 1 else start
    return start + (end - start) * epoch / (steps - 1)


class DINOLoss(nn.Module):
    """Loss of DINO (Caron et al. 2021, arXiv:2104.14294); drop-in for lightly's class of this name.

    Every view of the student learns the softmax, centred and sharpened, that the teacher makes of
    every other view (equations 1 and 3), and the centre follows the mean of the teacher's scores
    (equation 4): the loss takes the centre from before this batch.

    The teacher's and student's outputs may be scores [B, K], as in lightly; or features [B, D] with
    ``weight``, their prototypes [K, D], whose scores are then never in memory.

    Args:
        output_dim: K.
        warmup_teacher_temp: the teacher's temperature in the first epoch.
        teacher_temp: after the warm-up.
        warmup_teacher_temp_epochs: epochs over which it rises linearly.
        student_temp: the student's temperature.
        center_momentum: of the centre.
        center_mode: "mean", or "sinkhorn": instead of a centre, the shift that lets the batch of
            all ranks use all prototypes alike, by three iterations (DINOv2; needs ``weight``).
        process_group: ranks over which the centre's mean is taken, and rows are counted; None: all.

    Attributes:
        center: [1, 1, K], a buffer.

    Raises:
        ValueError, TypeError: an argument of the wrong kind or out of its range.

    Differences from lightly 1.6: the centre moves only in training mode; over ranks, batches may
    differ in size and weigh as much as they have rows, so that losses and gradients averaged over
    ranks (DDP, FSDP) are those of one process with the global batch; 16-bit outputs give a loss in
    float32.
    """

    center: Tensor

    @checked
    def __init__(
        self,
        output_dim: Width = 65536,
        warmup_teacher_temp: PositiveFloat = 0.04,
        teacher_temp: PositiveFloat = 0.04,
        warmup_teacher_temp_epochs: NonNegativeInt = 30,
        student_temp: PositiveFloat = 0.1,
        center_momentum: Probability = 0.9,
        center_mode: Literal["mean", "sinkhorn"] = "mean",
        process_group: Any = None,
    ) -> None:
        super().__init__()
        self.warmup_teacher_temp, self.teacher_temp = warmup_teacher_temp, teacher_temp
        self.warmup_teacher_temp_epochs = warmup_teacher_temp_epochs
        self.student_temp, self.center_momentum = student_temp, center_momentum
        self.center_mode, self.process_group = center_mode, process_group
        self.register_buffer("center", torch.zeros(1, 1, output_dim))

    def extra_repr(self) -> str:
        """Show the settings."""
        return (
            f"output_dim={self.center.numel()}, teacher_temp={self.teacher_temp}, "
            f"student_temp={self.student_temp}, center_momentum={self.center_momentum}"
        )

    def temperature_in(self, epoch: int) -> float:
        """The teacher's temperature in an epoch, from 0 on."""
        steps = self.warmup_teacher_temp_epochs
        return linear_warmup(self.warmup_teacher_temp, self.teacher_temp, steps, epoch)

    def forward(
        self,
        teacher_out: Sequence[Tensor],
        student_out: Sequence[Tensor],
        teacher_temp: float | Tensor | None = None,
        epoch: int | None = None,
        *,
        weight: Tensor | None = None,
        teacher_weight: Tensor | None = None,
    ) -> Tensor:
        """The mean cross-entropy over samples and pairs of different views.

        Args:
            teacher_out: scores [B, K] or features [B, E] of each of the teacher's views.
            student_out: of the student's, those of the teacher's views first and in their order.
            teacher_temp: the teacher's temperature; None: that of the epoch.
            epoch: from 0 on; None: the temperature after the warm-up.
            weight: the student's prototypes [K, D], where outputs are features.
            teacher_weight: the teacher's [K, E]; None: the student's.

        Returns:
            The loss, 0-d, in float32 (float64 for float64 outputs).

        Raises:
            TypeError: outputs that are no floating-point tensors.
            ValueError: shapes, dtypes or devices that do not fit, no pair of different views.
        """
        return self.parts(
            teacher_out, student_out, teacher_temp, epoch,
            weight=weight, teacher_weight=teacher_weight,
        ).loss  # fmt: skip

    def parts(
        self,
        teacher_out: Sequence[Tensor],
        student_out: Sequence[Tensor],
        teacher_temp: float | Tensor | None = None,
        epoch: int | None = None,
        *,
        weight: Tensor | None = None,
        teacher_weight: Tensor | None = None,
    ) -> Comparison:
        """The same with the teacher's entropies [T, B] and the use of its prototypes [K]."""
        teacher, student = (
            stacked("teacher_out", teacher_out),
            stacked("student_out", student_out),
        )
        views = len(student), len(teacher)
        pairs = torch.ones(views, dtype=accumulation_dtype(student.dtype), device=student.device)
        pairs.fill_diagonal_(0)
        if views[0] * views[1] == min(views):
            raise ValueError(
                "each view learns from the teacher's other views, and there are none: got "
                f"{views[1]} of the teacher and {views[0]} of the student"
            )
        if teacher_temp is None:
            teacher_temp = self.teacher_temp if epoch is None else self.temperature_in(epoch)
        of_teacher = weight if teacher_weight is None else teacher_weight
        check_prototypes(self.center, student if weight is None else weight.T)
        scale = scale_of(teacher_temp, student).detach()
        rows, given = teacher.flatten(0, 1), (of_teacher, teacher_temp, self.process_group)
        bias = shift(self.center, self.center_mode, scale, rows, *given)
        every = mean_over_ranks(rows, self.process_group)
        if weight is None:
            found = of_scores(student, teacher, self.student_temp, scale, bias, pairs)
        else:
            found = compare_prototypes(
                student, teacher, weight, of_teacher, student_temperature=self.student_temp,
                teacher_temperature=teacher_temp, teacher_bias=bias, pairs=pairs,
            )  # fmt: skip
        if self.training and self.center_mode == "mean":
            follow(self.center, every, of_teacher, self.center_momentum)
        return found._replace(loss=every.share * found.loss)
