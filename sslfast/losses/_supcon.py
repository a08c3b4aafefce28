"""The supervised contrastive loss."""

from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from sslfast._arguments import checked
from sslfast.functional import supcon
from sslfast.functional._common import check_labels, scale_of
from sslfast.losses.distributed_supcon import global_supcon_losses
from sslfast.losses.exchange import world_size
from sslfast.ops.unit_rows import wide_unit_rows


class SupConLoss(nn.Module):
    """Supervised contrastive loss (Khosla et al. 2020, L_out); see sslfast.functional.supcon.

    Args:
        temperature: divides the cosine similarities; not 0.
        process_group: ranks whose rows are positives and negatives too; None: this one alone.
            Gradients averaged over ranks (DDP, FSDP) are those of one process with the global
            batch. Two rows alone in their class belong on one rank, of an even number of rows:
            elsewhere a loss below 1e-3 has but three digits.

    Shapes:
        features [M, D], labels int64 [M]; returns the mean over rows that have a positive (with a
        process_group: W over their number on all ranks, times the sum over this rank's).

    Raises:
        TypeError, ValueError: as ``sslfast.functional.supcon``.
    """

    @checked
    def __init__(self, temperature: float | Tensor = 0.1, process_group: Any = None) -> None:
        super().__init__()
        self.temperature = temperature
        self.process_group = process_group

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss."""
        if self.process_group is None:
            return supcon(features, labels, self.temperature)
        check_labels(features, labels)
        scale = scale_of(self.temperature, features)
        z = wide_unit_rows(features)
        losses, positives = global_supcon_losses(z, labels, scale, self.process_group)
        count = (positives > 0).sum()
        dist.all_reduce(count, group=self.process_group)
        loss = losses.sum() * world_size(self.process_group) / count.clamp_min(1)
        return loss.to(scale.dtype)
