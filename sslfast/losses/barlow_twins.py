"""The loss of Barlow Twins; its class has the constructor and forward of lightly's."""

from typing import Any

from torch import Tensor, nn

from sslfast._arguments import NonNegativeFloat, PositiveFloat, checked
from sslfast.kernels.cross_correlation.op import cross_correlation
from sslfast.kernels.cross_correlation.ranks import global_cross_correlation
from sslfast.kernels.exchange import check_exchange, world_size
from sslfast.losses._inputs import check_embeddings, check_rows

EPS = 1e-5  # of torch.nn.BatchNorm1d, which the published code standardizes with


@checked
def barlow_twins(
    z_a: Tensor, z_b: Tensor, lambda_param: NonNegativeFloat = 5e-3, *, eps: PositiveFloat = EPS
) -> Tensor:
    """The loss of Barlow Twins (Zbontar et al. 2021, arXiv:2103.03230, equation 1).

    With C the cross-correlation [D, D] of the columns of both views, each minus its mean and
    divided by the root of its biased variance + eps:
    L = sum_j (1 - c_jj)^2 + lambda sum_{i != j} c_ij^2. C is not formed where N <= 3/4 D.

    Args:
        z_a: features of the first views [N, D], N at least 2.
        z_b: those of the second views [N, D], of the same dtype and device.
        lambda_param: lambda, the weight of the second sum.
        eps: added to the variances; not 0, for a column may be constant.

    Returns:
        The loss, 0-d, in float32 (float64 for float64 inputs).

    Raises:
        TypeError: features that are no floating-point tensors.
        ValueError: shapes, dtypes or devices that do not fit, fewer than 2 rows, a negative
            lambda_param, an eps that is not positive.
    """
    z_a, z_b = check_embeddings(z_a=z_a, z_b=z_b)
    check_rows(len(z_a))
    diagonal, redundancy = cross_correlation(z_a, z_b, True, eps)
    return (1 - diagonal).square().sum() + lambda_param * redundancy


class BarlowTwinsLoss(nn.Module):
    """Loss of Barlow Twins (Zbontar et al. 2021); drop-in for lightly's class of this name.

    Args:
        lambda_param: weight of the redundancy, the sum of squares off the diagonal; not negative.
        gather_distributed: correlate the features of all ranks, which may have different numbers of
            rows. All return the loss of one process with the global batch, and averaging gradients
            over ranks (DDP, FSDP) gives its gradient.
        process_group: the ranks whose features are correlated; None: all.

    Shapes:
        z_a, z_b: [N, D] of one floating dtype and device. Returns the loss, 0-d, in float32
        (float64 for float64 inputs).

    Raises:
        ValueError: a negative lambda_param, gather_distributed in a torch without
            torch.distributed, shapes, dtypes or devices that do not fit, fewer than 2 rows in all.
        TypeError: features that are no floating-point tensors.

    Differences from lightly 1.6: over ranks, columns are standardized by their mean and variance
    over all ranks, and not by each rank's own, so that the loss does not depend on how a batch is
    cut up; ranks weigh as much as they have rows; and 16-bit features give a loss in float32.
    """

    @checked
    def __init__(
        self,
        lambda_param: NonNegativeFloat = 5e-3,
        gather_distributed: bool = False,
        process_group: Any = None,
    ) -> None:
        super().__init__()
        check_exchange("gather", gather_distributed)
        self.lambda_param = lambda_param
        self.gather_distributed = gather_distributed
        self.process_group = process_group

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"lambda_param={self.lambda_param}, gather_distributed={self.gather_distributed}"

    def forward(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        """Return the loss of the features [N, D] of two views."""
        return self.parts(z_a, z_b)["loss"]

    def parts(self, z_a: Tensor, z_b: Tensor) -> dict[str, Tensor]:
        """Return the "loss", and without gradients the sums it is made of.

        "invariance" is sum_j (1 - c_jj)^2, and "redundancy" sum_{i != j} c_ij^2, before
        lambda_param.
        """
        z_a, z_b = check_embeddings(z_a=z_a, z_b=z_b)
        if self.gather_distributed and world_size(self.process_group) > 1:
            found = global_cross_correlation(z_a, z_b, True, EPS, self.process_group)
            diagonal, redundancy = found[:2]
        else:
            check_rows(len(z_a))
            diagonal, redundancy = cross_correlation(z_a, z_b, True, EPS)
        invariance = (1 - diagonal).square().sum()
        return {
            "loss": invariance + self.lambda_param * redundancy,
            "invariance": invariance.detach(),
            "redundancy": redundancy.detach(),
        }
