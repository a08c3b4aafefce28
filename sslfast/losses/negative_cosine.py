"""Negative cosine similarity, the loss of methods that attract and repel nothing."""

import torch
from torch import Tensor, nn

from sslfast._arguments import NonNegativeFloat, checked
from sslfast.kernels.dtypes import accumulation_dtype
from sslfast.kernels.unit_rows import EPS
from sslfast.losses._inputs import check_embeddings

SHORT = 1e-8  # an embedding no longer than this has no direction to learn from


@checked
def negative_cosine_similarity(
    x0: Tensor, x1: Tensor, dim: int = 1, eps: NonNegativeFloat = 1e-8
) -> Tensor:
    """Minus the mean cosine similarity of rows (SimSiam, Chen and He 2020, equation 1).

    Args:
        x0: [N, D], or any shape.
        x1: of the same shape; detach it for a stopped gradient.
        dim: of the embeddings' numbers.
        eps: norms are taken to be this at least, and 1e-12 at least. Embeddings no longer than 1e-8
            get no gradient.

    Returns:
        The mean, in [-1, 1], in float32 (float64 for float64 inputs).

    Raises:
        TypeError: embeddings that are no floating-point tensors.
        ValueError: no embeddings, shapes, dtypes or devices that do not fit, a dim that they do not
            have.
    """
    x0, x1 = check_embeddings(True, False, x0=x0, x1=x1)
    if not -x0.dim() <= dim < x0.dim():
        raise ValueError(f"dim must be one of the {x0.dim()} of x0, {list(x0.shape)}, got {dim}")
    return -(_unit(x0, dim, eps) * _unit(x1, dim, eps)).sum(dim).mean()


def _unit(x: Tensor, dim: int, eps: float) -> Tensor:
    """Divide x by max(||x||, eps) along a dimension, in the accumulation dtype."""
    wide = x.to(accumulation_dtype(x.dtype))
    # In float32 the squares of numbers beyond 1e19 are infinite.
    norms = torch.linalg.vector_norm(wide, dim=dim, keepdim=True, dtype=torch.float64)
    norms = norms.to(wide.dtype)
    unit = wide / norms.clamp_min(max(eps, EPS))
    return torch.where(norms <= SHORT, unit.detach(), unit)


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
        TypeError, ValueError: as ``sslfast.functional.negative_cosine_similarity``.

    Differences from lightly 1.6: embeddings no longer than 1e-8 get no gradient, not one of 1e8,
    and float32 embeddings beyond 1e19 have their cosine, not 0.
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
