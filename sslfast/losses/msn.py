"""The loss of MSN; its class has the constructor and forward of lightly's."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from sslfast._arguments import NonNegativeFloat, NonNegativeInt, PositiveFloat, checked
from sslfast.kernels.dtypes import accumulation_dtype
from sslfast.kernels.exchange import check_exchange, mean_over_ranks
from sslfast.kernels.unit_rows.op import wide_unit_rows
from sslfast.losses._center import of_scores
from sslfast.losses._inputs import check_embeddings, scale_of
from sslfast.losses.prototypes import Comparison
from sslfast.losses.sinkhorn import of_scores as shift_of_scores


class MSNLoss(nn.Module):
    """Loss of MSN (Assran et al. 2022, arXiv:2204.07141, section 3); drop-in for lightly's class.

    Anchors, of which patches are hidden, learn the softmax over prototypes that their target has,
    sharpened; and the mean of the anchors' softmaxes is to have a high entropy, so that all
    prototypes are used. Features and prototypes are taken as unit vectors. Scores [N, K] are in
    memory: there are about a thousand prototypes.

    Args:
        temperature: of the anchors' softmax.
        sinkhorn_iterations: of the targets over the batch (``sslfast.functional.sinkhorn``); 0:
            none.
        regularization_weight: of what the mean's entropy lacks of log K; 0: none.
        gather_distributed: targets' shifts and the anchors' mean are over the batches of all ranks,
            which may differ in size.
        process_group: the ranks; None: all.

    Raises:
        ValueError, TypeError: an argument of the wrong kind or out of its range.

    Differences from lightly 1.6: with ``gather_distributed`` the mean of the anchors' softmaxes is
    over all ranks, too, as in the paper's code, and losses and gradients averaged over ranks (DDP,
    FSDP) are those of one process with the global batch; logarithms are those of the softmax, which
    does not become 0; 16-bit features give a loss in float32.
    """

    @checked
    def __init__(
        self,
        temperature: PositiveFloat = 0.1,
        sinkhorn_iterations: NonNegativeInt = 3,
        regularization_weight: NonNegativeFloat = 1.0,
        gather_distributed: bool = False,
        process_group: Any = None,
    ) -> None:
        super().__init__()
        check_exchange("gather", gather_distributed)
        self.temperature, self.sinkhorn_iterations = temperature, sinkhorn_iterations
        self.regularization_weight = regularization_weight
        self.gather_distributed, self.process_group = gather_distributed, process_group

    def extra_repr(self) -> str:
        """Show the settings."""
        return (
            f"temperature={self.temperature}, sinkhorn_iterations={self.sinkhorn_iterations}, "
            f"regularization_weight={self.regularization_weight}, "
            f"gather_distributed={self.gather_distributed}"
        )

    def forward(
        self,
        anchors: Tensor,
        targets: Tensor,
        prototypes: Tensor,
        target_sharpen_temperature: float = 0.25,
    ) -> Tensor:
        """The mean cross-entropy of anchors and targets, and the regularisation.

        Args:
            anchors: features [V * B, D], all samples of one view after those of another.
            targets: of the samples [B, D]; no gradient flows to them.
            prototypes: [K, D].
            target_sharpen_temperature: the targets' temperature is this times the anchors'.

        Returns:
            The loss, 0-d, in float32 (float64 for float64 features).

        Raises:
            TypeError: inputs that are no floating-point tensors.
            ValueError: shapes, dtypes or devices that do not fit, a temperature of 0.
        """
        return self.parts(anchors, targets, prototypes, target_sharpen_temperature).loss

    def parts(
        self,
        anchors: Tensor,
        targets: Tensor,
        prototypes: Tensor,
        target_sharpen_temperature: float = 0.25,
    ) -> Comparison:
        """The same with the targets' entropies [1, B] and the use of the prototypes [K]."""
        rows = check_embeddings(False, anchors=anchors, targets=targets, prototypes=prototypes)
        views, left = divmod(len(anchors), len(targets))
        if left:
            raise ValueError(
                "anchors must be as many views of every target, got "
                f"{len(anchors)} anchors of {len(targets)} targets"
            )
        scale = scale_of(self.temperature * target_sharpen_temperature, targets)
        dtype = accumulation_dtype(rows[0].dtype)
        with torch.autocast(anchors.device.type, enabled=False):
            anchors, targets, w = (wide_unit_rows(x) for x in rows)
            scores = (anchors @ w.T).unflatten(0, (views, -1))
            with torch.no_grad():
                wanted = targets @ w.T
                bias = self._shift(wanted * scale)
        pairs = torch.ones(views, 1, dtype=dtype, device=scores.device)
        found = of_scores(scores, wanted[None], self.temperature, scale, bias, pairs)
        probabilities = (scores.flatten(0, 1) / self.temperature).softmax(1)
        mean, share = probabilities.mean(0), torch.ones((), dtype=dtype, device=scores.device)
        if self.gather_distributed:  # the value is that of all ranks, the gradient this one's part
            every = mean_over_ranks(probabilities, self.process_group)
            mean, share = share_of(mean, every.mean, every.share), every.share
        loss = share * found.loss
        if self.regularization_weight:
            lacks = math.log(len(w)) - torch.special.entr(mean).sum()
            loss = loss + self.regularization_weight * lacks
        return found._replace(loss=loss)

    def _shift(self, scaled: Tensor) -> Tensor:
        """What evens the targets' use of prototypes [K], of scores times their scale [B, K]."""
        if not self.sinkhorn_iterations:
            return scaled.new_zeros(scaled.shape[1])
        return shift_of_scores(
            scaled.log_softmax(1), temperature=1.0, iterations=self.sinkhorn_iterations,
            gather_distributed=self.gather_distributed, process_group=self.process_group,
        )  # fmt: skip


def share_of(mean: Tensor, every: Tensor, share: Tensor) -> Tensor:
    """The mean of all ranks, whose gradient, averaged over ranks, is that of one process.

    Args:
        mean: of this rank's rows, with a gradient.
        every: of all ranks' rows, without.
        share: how much this rank's weighs among the ranks'.
    """
    own = share * mean
    return every + (own - own.detach())
