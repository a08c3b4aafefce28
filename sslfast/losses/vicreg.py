"""The loss of VICReg; its class has the constructor and forward of lightly's."""

from typing import Any

import torch
from torch import Tensor, nn

from sslfast._arguments import NonNegativeFloat, PositiveFloat, checked
from sslfast.kernels.cross_correlation.op import cross_correlation
from sslfast.kernels.cross_correlation.ranks import global_cross_correlation
from sslfast.kernels.exchange import check_exchange, world_size
from sslfast.kernels.masked_mse.op import masked_mse
from sslfast.losses._inputs import check_embeddings, check_rows


@checked
def vicreg(
    z_a: Tensor,
    z_b: Tensor,
    lambda_param: NonNegativeFloat = 25.0,
    mu_param: NonNegativeFloat = 25.0,
    nu_param: NonNegativeFloat = 1.0,
    *,
    eps: PositiveFloat = 1e-4,
) -> Tensor:
    """The loss of VICReg (Bardes et al. 2022, arXiv:2105.04906, equation 6).

    L = lambda s(A, B) + mu (v(A) + v(B)) / 2 + nu (c(A) + c(B)), as in the published code:
    s is the mean over rows and columns of (a_ij - b_ij)^2,
    v the mean over columns of max(0, 1 - sqrt(var_j + eps)), var with N - 1 below, and
    c = sum_{i != j} cov_ij^2 / D of the covariances [D, D], which are not formed where N <= 3/4 D.

    Args:
        z_a: features of the first views [N, D], N at least 2.
        z_b: those of the second views [N, D], of the same dtype and device.
        lambda_param: weight of the invariance s.
        mu_param: weight of the variance v.
        nu_param: weight of the covariance c.
        eps: added to the variances; not 0, for a column may be constant.

    Returns:
        The loss, 0-d, in float32 (float64 for float64 inputs).

    Raises:
        TypeError: features that are no floating-point tensors.
        ValueError: shapes, dtypes or devices that do not fit, fewer than 2 rows, a negative
            weight, an eps that is not positive.
    """
    z_a, z_b = check_embeddings(z_a=z_a, z_b=z_b)
    check_rows(len(z_a))
    a, b = (_of_a_view(*cross_correlation(z, None, False), eps) for z in (z_a, z_b))
    variance, covariance = (a[0] + b[0]) / 2, a[1] + b[1]
    return lambda_param * _invariance(z_a, z_b) + mu_param * variance + nu_param * covariance


def _invariance(z_a: Tensor, z_b: Tensor) -> Tensor:
    every_row = torch.ones(len(z_a), dtype=torch.bool, device=z_a.device)
    return masked_mse(z_a, z_b, every_row, norm_target=False, eps=0.0).mean()


def _of_a_view(variances: Tensor, squares: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The terms v and c of one view, from its variances [D] and the sum of squared covariances."""
    return torch.relu(1 - (variances + eps).sqrt()).mean(), squares / len(variances)


class VICRegLoss(nn.Module):
    """Loss of VICReg (Bardes et al. 2022); drop-in for lightly's class of this name.

    Args:
        lambda_param: weight of the invariance, the mean squared difference of the views.
        mu_param: weight of the variance, a hinge that holds standard deviations up to 1.
        nu_param: weight of the covariance, the sum of squares off the diagonal over D.
        gather_distributed: take variances and covariances over the features of all ranks, which
            may have different numbers of rows. The invariance is W n / M times the mean over this
            rank's rows, for n rows of M on W ranks, so that losses and gradients averaged over
            ranks (DDP, FSDP) are those of one process with the global batch.
        eps: added to the variances; not 0, for a column may be constant.
        process_group: the ranks to take them over; None: all.

    Shapes:
        z_a, z_b: [N, D] of one floating dtype and device. Returns the loss, 0-d, in float32
        (float64 for float64 inputs).

    Raises:
        ValueError: a negative weight, an eps that is not positive, gather_distributed in a torch
            without torch.distributed, shapes, dtypes or devices that do not fit, fewer than 2 rows
            in all.
        TypeError: features that are no floating-point tensors.

    Differences from lightly 1.6: ranks weigh as much as they have rows, 16-bit features give a loss
    in float32, and features are [N, D] only.
    """

    @checked
    def __init__(
        self,
        lambda_param: NonNegativeFloat = 25.0,
        mu_param: NonNegativeFloat = 25.0,
        nu_param: NonNegativeFloat = 1.0,
        gather_distributed: bool = False,
        eps: PositiveFloat = 0.0001,
        process_group: Any = None,
    ) -> None:
        super().__init__()
        check_exchange("gather", gather_distributed)
        self.lambda_param = lambda_param
        self.mu_param = mu_param
        self.nu_param = nu_param
        self.gather_distributed = gather_distributed
        self.eps = eps
        self.process_group = process_group

    def extra_repr(self) -> str:
        """Show the settings."""
        return (
            f"lambda_param={self.lambda_param}, mu_param={self.mu_param}, "
            f"nu_param={self.nu_param}, gather_distributed={self.gather_distributed}, "
            f"eps={self.eps}"
        )

    def forward(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        """Return the loss of the features [N, D] of two views."""
        return self.parts(z_a, z_b)["loss"]

    def parts(self, z_a: Tensor, z_b: Tensor) -> dict[str, Tensor]:
        """Return the "loss", and without gradients what it is made of, before the weights.

        "invariance", "variance" (the mean of both views) and "covariance" (the sum of both).
        """
        z_a, z_b = check_embeddings(z_a=z_a, z_b=z_b)
        variance_a, covariance_a, share = self._of_view(z_a)
        variance_b, covariance_b, _ = self._of_view(z_b)
        invariance = share * _invariance(z_a, z_b)
        variance, covariance = (variance_a + variance_b) / 2, covariance_a + covariance_b
        loss = self.lambda_param * invariance + self.mu_param * variance
        return {
            "loss": loss + self.nu_param * covariance,
            "invariance": invariance.detach(),
            "variance": variance.detach(),
            "covariance": covariance.detach(),
        }

    def of_view(self, z: Tensor) -> Tensor:
        """What one view's features [N, D] add to the loss: mu / 2 variance + nu covariance."""
        (z,) = check_embeddings(z=z)
        variance, covariance, _ = self._of_view(z)
        return self.mu_param / 2 * variance + self.nu_param * covariance

    def _of_view(self, z: Tensor) -> tuple[Tensor, Tensor, float | Tensor]:
        """Variance and covariance of a view, and W n / M, which weighs a mean over its rows."""
        ranks = world_size(self.process_group) if self.gather_distributed else 1
        if ranks == 1:
            check_rows(len(z))
            return *_of_a_view(*cross_correlation(z, None, False), self.eps), 1.0
        variances, squares, rows = global_cross_correlation(
            z, None, False, group=self.process_group
        )
        share = ranks * len(z) / rows.to(squares.dtype)
        return *_of_a_view(variances, squares, self.eps), share
