"""The KoLeo regulariser; its class has the constructor and forward of lightly's."""

from typing import Any

import torch
from torch import Tensor, nn

from sslfast._arguments import NonNegativeFloat, PositiveFloat, checked
from sslfast.kernels.exchange import (
    check_exchange,
    gather_rows,
    mean_over_ranks,
    name_of,
    world_size,
)
from sslfast.kernels.nearest_rows.op import nearest_rows
from sslfast.kernels.unit_rows.op import wide_unit_rows
from sslfast.losses._inputs import check_embeddings, check_rows

SHORT = 1e-6  # rows that are no farther apart than float32 can tell push each other nowhere


@checked
def koleo(x: Tensor, p: PositiveFloat = 2.0, eps: NonNegativeFloat = 1e-8) -> Tensor:
    """Minus the mean logarithm of the distance to the nearest neighbour: even rows are spread out.

    The differential entropy estimate of Kozachenko and Leonenko (Sablayrolles et al. 2019,
    arXiv:1806.03198, equation 4), of rows divided by their norms, with the neighbour by cosine, as
    in DINOv2: -mean_i log(||x_i - x_n(i) + eps||_p + eps).

    Args:
        x: features [N, D], N at least 2.
        p: of the norm.
        eps: see above. Equal rows have -log of about eps, which is 18, and no gradient.

    Returns:
        The loss, 0-d, in float32 (float64 for float64 features).

    Raises:
        TypeError: features that are no floating-point tensor.
        ValueError: another shape, fewer than 2 rows.
    """
    check_embeddings(x=x)
    check_rows(len(x))
    rows = wide_unit_rows(x)
    return _of_rows(rows, rows, torch.arange(len(x), device=x.device), p, eps)


def _of_rows(x: Tensor, y: Tensor, own: Tensor, p: float, eps: float) -> Tensor:
    neighbour = y[nearest_rows(x.detach(), y.detach(), own)]
    apart = x - neighbour + eps
    distance = torch.linalg.vector_norm(apart, p, dim=1)
    # Where there is no direction, the gradient would be 1 / eps.
    far = torch.where((distance <= SHORT)[:, None], apart.detach(), apart)
    return -(torch.linalg.vector_norm(far, p, dim=1) + eps).log().mean()


class KoLeoLoss(nn.Module):
    """KoLeo regulariser of DINOv2; drop-in for lightly's class of this name.

    Args:
        p: of the norm.
        eps: see ``sslfast.functional.koleo``.
        gather_distributed: look for neighbours among the rows of all ranks, which may have
            different numbers of them. Losses and gradients averaged over ranks (DDP, FSDP) are then
            those of one process with the global batch. DINOv2 looks among each rank's own.
        process_group: the ranks; None: all.

    Shapes:
        x: features [N, D] of a floating dtype, before any normalisation. Returns the loss, 0-d, in
        float32 (float64 for float64 features).

    Raises:
        TypeError, ValueError: as ``sslfast.functional.koleo``; lightly and DINOv2 take a row alone
            for its own neighbour.

    Differences from lightly 1.6: rows no farther apart than 1e-6 get no gradient, not one of up to
    1e8.
    """

    @checked
    def __init__(
        self,
        p: PositiveFloat = 2,
        eps: NonNegativeFloat = 1e-8,
        gather_distributed: bool = False,
        process_group: Any = None,
    ) -> None:
        super().__init__()
        check_exchange("gather", gather_distributed)
        self.p, self.eps = p, eps
        self.gather_distributed, self.process_group = gather_distributed, process_group

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"p={self.p}, eps={self.eps}, gather_distributed={self.gather_distributed}"

    def forward(self, x: Tensor) -> Tensor:
        """Return the loss of features [N, D]."""
        if not self.gather_distributed or world_size(self.process_group) == 1:
            return koleo(x, self.p, self.eps)
        check_embeddings(x=x)
        rows = wide_unit_rows(x)
        everyones, own = gather_rows(rows, name_of(self.process_group))
        check_rows(len(everyones))
        share = mean_over_ranks(rows[:, :0], self.process_group).share
        return share * _of_rows(rows, everyones, own, self.p, self.eps)
