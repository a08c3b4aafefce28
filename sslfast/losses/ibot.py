"""The patch loss of iBOT; its class has the constructor and forward of lightly's."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from sslfast._arguments import PositiveFloat, Probability, Width, checked
from sslfast.kernels.dtypes import accumulation_dtype
from sslfast.kernels.exchange import mean_over_ranks
from sslfast.losses._center import check_prototypes, follow, of_scores, shift
from sslfast.losses._inputs import check_embeddings, scale_of
from sslfast.losses.prototypes import Comparison, compare_prototypes


class Center(nn.Module):
    """A centre by the name that lightly's states have for it: ``center`` [1, K]."""

    center: Tensor

    def __init__(self, prototypes: int) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(1, prototypes))


class IBOTPatchLoss(nn.Module):
    """Loss of masked patches (iBOT, Zhou et al. 2022, arXiv:2111.07832, equation 2); drop-in.

    Of every masked patch the student, which does not see it, learns the softmax that the teacher,
    which does, makes of it, centred and sharpened. Patches weigh 1 / the number masked in their
    image, images alike, also those without.

    Outputs may be scores [N, K], as in lightly; or features [N, D] with ``weight``, their
    prototypes [K, D], whose scores are then never in memory.

    Args:
        output_dim: K.
        teacher_temp: the teacher's temperature.
        student_temp: the student's temperature.
        center_mode: "mean", or "sinkhorn"; see ``DINOLoss``.
        center_momentum: of the centre.
        process_group: ranks over which the centre's mean is taken, and images are counted; None:
            all.

    Raises:
        ValueError, TypeError: an argument of the wrong kind or out of its range.

    Differences from lightly 1.6: the centre moves only in training mode, and stays where nothing is
    masked (there it becomes NaN); over ranks, batches may differ in size, and losses and gradients
    averaged over ranks (DDP, FSDP) are those of one process with the global batch; 16-bit outputs
    give a loss in float32.
    """

    @checked
    def __init__(
        self,
        output_dim: Width = 65536,
        teacher_temp: PositiveFloat = 0.04,
        student_temp: PositiveFloat = 0.1,
        center_mode: Literal["mean", "sinkhorn"] = "mean",
        center_momentum: Probability = 0.9,
        process_group: Any = None,
    ) -> None:
        super().__init__()
        self.teacher_temp, self.student_temp = teacher_temp, student_temp
        self.center_mode, self.center_momentum = center_mode, center_momentum
        self.process_group = process_group
        self.center = Center(output_dim)

    def extra_repr(self) -> str:
        """Show the settings."""
        return (
            f"output_dim={self.center.center.numel()}, teacher_temp={self.teacher_temp}, "
            f"student_temp={self.student_temp}, center_momentum={self.center_momentum}"
        )

    def forward(
        self,
        teacher_out: Tensor,
        student_out: Tensor,
        mask: Tensor,
        teacher_temp: float | Tensor | None = None,
        *,
        weight: Tensor | None = None,
        teacher_weight: Tensor | None = None,
    ) -> Tensor:
        """The mean over images of the mean over their masked patches.

        Args:
            teacher_out: scores [N, K] or features [N, E] of the masked patches, in the order of
                ``mask``.
            student_out: the student's.
            mask: bool [B, H, W] or [B, L], true = masked, N times.
            teacher_temp: the teacher's temperature; None: as the loss was made.
            weight: the student's prototypes [K, D], where outputs are features.
            teacher_weight: the teacher's [K, E]; None: the student's.

        Returns:
            The loss, 0-d, in float32 (float64 for float64 outputs).

        Raises:
            TypeError: outputs that are no floating-point tensors, a mask that is not bool.
            ValueError: shapes, dtypes or devices that do not fit.
        """
        if mask.dtype != torch.bool:
            raise TypeError(f"mask must be bool (true = masked), got {mask.dtype}")
        if mask.dim() not in (2, 3):
            raise ValueError(f"mask must have shape [B, H, W] or [B, L], got {list(mask.shape)}")
        flat = mask.flatten(1)
        each = 1 / flat.sum(1, keepdim=True).clamp_min(1).to(accumulation_dtype(student_out.dtype))
        row_weight = each.expand_as(flat)[flat]
        if len(row_weight) != len(student_out):
            raise ValueError(
                f"mask hides {len(row_weight)} patches, but student_out has {len(student_out)} rows"
            )
        return self.parts(
            teacher_out, student_out, row_weight, len(mask), teacher_temp,
            weight=weight, teacher_weight=teacher_weight,
        ).loss  # fmt: skip

    def parts(
        self,
        teacher_out: Tensor,
        student_out: Tensor,
        row_weight: Tensor,
        images: int,
        teacher_temp: float | Tensor | None = None,
        *,
        weight: Tensor | None = None,
        teacher_weight: Tensor | None = None,
    ) -> Comparison:
        """The same for weights of the patches [N] that are known, with the teacher's statistics.

        ``row_weight`` are as of ``SpreadMask.weight``; ``images`` is B.
        """
        of_teacher = weight if teacher_weight is None else teacher_weight
        check_prototypes(self.center.center, student_out if weight is None else weight.T)
        # Ranks without a masked patch take part in these two.
        every = mean_over_ranks(teacher_out, self.process_group)
        counted = mean_over_ranks(teacher_out.new_empty(images, 0), self.process_group)
        temperature = self.teacher_temp if teacher_temp is None else teacher_temp
        scale = scale_of(temperature, student_out).detach()
        given = of_teacher, temperature, self.process_group
        bias = shift(self.center.center, self.center_mode, scale, teacher_out, *given)
        rows = (row_weight / images).to(scale.dtype)[None]
        if not len(student_out) and not len(teacher_out):
            # With gradients of 0, for which DDP waits.
            inputs = [student_out] if weight is None else [student_out, weight]
            none = sum((0 * x.sum(dtype=scale.dtype) for x in inputs), torch.zeros_like(scale))
            found = Comparison(none, none.detach()[None, None], torch.zeros_like(bias))
        elif weight is None:
            check_embeddings(teacher_out=teacher_out, student_out=student_out)
            one = torch.ones(1, 1, dtype=scale.dtype, device=scale.device)
            sides = student_out[None], teacher_out[None], self.student_temp, scale, bias
            found = of_scores(*sides, one, rows)
        else:
            found = compare_prototypes(
                student_out, teacher_out, weight, of_teacher,
                student_temperature=self.student_temp, teacher_temperature=temperature,
                teacher_bias=bias, row_weight=rows,
            )  # fmt: skip
        if self.training and self.center_mode == "mean":
            follow(self.center.center, every, of_teacher, self.center_momentum)
        return found._replace(loss=counted.share * found.loss)
