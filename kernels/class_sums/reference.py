"""The oracle: a product with the matrix of equal labels."""

from torch import Tensor

from . import Problem

DEVICE = "any"
PRIORITY = 0


def supports(problem: Problem) -> str | None:
    """Anything that fits in memory."""
    return None


def sums(x: Tensor, labels: Tensor) -> Tensor:
    """Sums of the rows' classes; see the package."""
    return (labels[:, None] == labels).to(x.dtype) @ x
