"""The loss of SwAV; its class has the constructor and forward of lightly's."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sslfast._arguments import NonNegativeInt, PositiveFloat, checked
from sslfast.kernels.dtypes import accumulation_dtype
from sslfast.kernels.exchange import check_exchange, mean_over_ranks
from sslfast.losses._center import of_scores, stacked
from sslfast.losses._inputs import scale_of
from sslfast.losses.prototypes import Comparison, compare_prototypes
from sslfast.losses.sinkhorn import of_scores as shift_of_scores
from sslfast.losses.sinkhorn import sinkhorn


class SwaVLoss(nn.Module):
    """Loss of SwAV (Caron et al. 2020, arXiv:2006.09882, equation 1); drop-in for lightly's class.

    Every crop learns the codes of each of the other whole images: the softmax of their scores,
    shifted so that over the batch, and a queue of earlier ones, all prototypes are used alike
    (``sslfast.functional.sinkhorn``). Codes have no gradient.

    Outputs may be scores [B, K], as in lightly; or features [B, D] with ``weight``, their
    prototypes [K, D], whose scores are then never in memory.

    Args:
        temperature: of the softmax that learns.
        sinkhorn_iterations: 0: codes are plain softmaxes, which collapse to few prototypes.
        sinkhorn_epsilon: temperature of the codes.
        sinkhorn_gather_distributed: codes over the batches of all ranks, which may differ in size.
        process_group: the ranks; None: all.

    Raises:
        ValueError, TypeError: an argument of the wrong kind or out of its range.

    Differences from lightly 1.6: codes are computed in the log domain, where scores of 16 bits and
    a low epsilon do not overflow; the loss is 0-d, not [1], and in float32 for 16-bit outputs; over
    ranks it weighs as much as a rank has rows, so that losses and gradients averaged over ranks
    (DDP, FSDP) are those of one process with the global batch.
    """

    @checked
    def __init__(
        self,
        temperature: PositiveFloat = 0.1,
        sinkhorn_iterations: NonNegativeInt = 3,
        sinkhorn_epsilon: PositiveFloat = 0.05,
        sinkhorn_gather_distributed: bool = False,
        process_group: Any = None,
    ) -> None:
        super().__init__()
        check_exchange("gather", sinkhorn_gather_distributed)
        self.temperature, self.sinkhorn_epsilon = temperature, sinkhorn_epsilon
        self.sinkhorn_iterations = sinkhorn_iterations
        self.sinkhorn_gather_distributed = sinkhorn_gather_distributed
        self.process_group = process_group

    def extra_repr(self) -> str:
        """Show the settings."""
        return (
            f"temperature={self.temperature}, sinkhorn_iterations={self.sinkhorn_iterations}, "
            f"sinkhorn_epsilon={self.sinkhorn_epsilon}, "
            f"sinkhorn_gather_distributed={self.sinkhorn_gather_distributed}"
        )

    def forward(
        self,
        high_resolution_outputs: Sequence[Tensor],
        low_resolution_outputs: Sequence[Tensor],
        queue_outputs: Sequence[Tensor] | None = None,
        *,
        weight: Tensor | None = None,
    ) -> Tensor:
        """The mean cross-entropy over samples and pairs of a whole image and another crop.

        Args:
            high_resolution_outputs: scores [B, K] or features [B, D] of the whole images.
            low_resolution_outputs: of small crops of the same samples; may be empty.
            queue_outputs: of earlier whole images [Q, K] or [Q, D], one for each of the first;
                they take part in the codes alone.
            weight: prototypes [K, D], where outputs are features.

        Returns:
            The loss, 0-d, in float32 (float64 for float64 outputs).

        Raises:
            TypeError: outputs that are no floating-point tensors.
            ValueError: shapes, dtypes or devices that do not fit, no pair of different views.
        """
        return self.parts(
            high_resolution_outputs, low_resolution_outputs, queue_outputs, weight=weight
        ).loss

    def parts(
        self,
        high_resolution_outputs: Sequence[Tensor],
        low_resolution_outputs: Sequence[Tensor],
        queue_outputs: Sequence[Tensor] | None = None,
        *,
        weight: Tensor | None = None,
    ) -> Comparison:
        """The same with the codes' entropies [V, B] and the use of the prototypes [K]."""
        whole = stacked("high_resolution_outputs", high_resolution_outputs)
        views = stacked("outputs", [*high_resolution_outputs, *low_resolution_outputs])
        if len(views) < 2:
            raise ValueError("each view learns the codes of another, and there is one")
        if queue_outputs is not None and len(queue_outputs) != len(whole):
            raise ValueError(
                f"queue_outputs must be one for each of the {len(whole)} whole images, got "
                f"{len(queue_outputs)}"
            )
        dtype = accumulation_dtype(views.dtype)
        bias = torch.stack(
            [self._shift(z, None if queue_outputs is None else queue_outputs[k], weight)
             for k, z in enumerate(whole.detach())]
        )  # fmt: skip
        pairs = torch.ones(len(views), len(whole), dtype=dtype, device=views.device)
        pairs.fill_diagonal_(0)
        if weight is None:
            scale = scale_of(self.sinkhorn_epsilon, views)
            found = of_scores(views, whole, self.temperature, scale, bias[:, None], pairs)
        else:
            found = compare_prototypes(
                views, whole, weight, student_temperature=self.temperature,
                teacher_temperature=self.sinkhorn_epsilon, teacher_bias=bias, pairs=pairs,
            )  # fmt: skip
        if self.sinkhorn_gather_distributed:
            share = mean_over_ranks(views[0, :, :0], self.process_group).share
            found = found._replace(loss=share * found.loss)
        return found

    def _shift(self, z: Tensor, queue: Tensor | None, weight: Tensor | None) -> Tensor:
        """What makes codes of the scores of one view, with those of its queue [K]."""
        if not self.sinkhorn_iterations:
            prototypes = z.shape[1] if weight is None else len(weight)
            return z.new_zeros(prototypes, dtype=accumulation_dtype(z.dtype))
        rows = z if queue is None else torch.cat((z, queue.detach().to(z.dtype)))
        options: dict[str, Any] = {
            "temperature": self.sinkhorn_epsilon,
            "iterations": self.sinkhorn_iterations,
            "gather_distributed": self.sinkhorn_gather_distributed,
            "process_group": self.process_group,
        }
        if weight is None:
            return shift_of_scores(rows, **options)
        return sinkhorn(rows, weight.detach(), **options)
