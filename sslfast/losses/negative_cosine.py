"""Negative cosine similarity, the loss of methods that attract and repel nothing."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslfast._arguments import NonNegativeFloat, checked
from sslfast.losses._inputs import check_embeddings


@checked
def negative_cosine_similarity(
    x0: Tensor, x1: Tensor, dim: int = 1, eps: NonNegativeFloat = 1e-8
) -> Tensor:
    """Minus the mean cosine similarity of rows (SimSiam, Chen and He 2020, equation 1).

    Args:
        x0: [N, D], or any shape.
        x1: of the same shape; detach it for a stopped gradient.
        dim: of the embeddings' numbers.
        eps: norms are taken to be this at least.

    Returns:
        The mean, in [-1, 1], in float32 (float64 for float64 inputs).

    Raises:
        ValueError: shapes, dtypes or devices that do not fit.
    """
    if x0.dim() == 2:
        x0, x1 = check_embeddings(x0=x0, x1=x1)
    elif x0.shape != x1.shape:
        raise ValueError(
            f"x0 and x1 must have the same shape, got {list(x0.shape)} and {list(x1.shape)}"
        )
    wide = torch.float64 if x0.dtype == torch.float64 else torch.float32
    return -F.cosine_similarity(x0.to(wide), x1.to(wide), dim, eps).mean()


class NegativeCosineSimilarity(nn.Module):
    """Minus the mean cosine similarity, as in SimSiam; drop-in for lightly's class of this name.

    No gradient is stopped here: detach the target, as in
    ``0.5 * (loss(p0, z1.detach()) + loss(p1, z0.detach()))``.

    Args:
        dim: of the embeddings' numbers.
        eps: norms are taken to be this at least.

    Shapes:
        x0, x1: [N, D], or any one shape. Returns the mean, in float32 (float64 for float64 inputs;
        lightly returns the inputs' dtype, which 16 bits round).

    Raises:
        ValueError: as ``sslfast.functional.negative_cosine_similarity``.
    """

    @checked
    def __init__(self, dim: int = 1, eps: NonNegativeFloat = 1e-8) -> None:
        super().__init__()
        self.dim, self.eps = dim, eps

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"dim={self.dim}, eps={self.eps}"

    def forward(self, x0: Tensor, x1: Tensor) -> Tensor:
        """Return minus the mean cosine similarity of x0 and x1."""
        return negative_cosine_similarity(x0, x1, self.dim, self.eps)
