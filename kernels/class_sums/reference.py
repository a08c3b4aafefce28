"""The oracle: a product with the matrix of equal classes."""

from torch import Tensor

from . import Problem

DEVICE = "any"
PRIORITY = 0


def supports(problem: Problem) -> str | None:
    """Anything that fits in memory."""
    return None


def sums(x: Tensor, classes: Tensor) -> Tensor:
    """Sums of the rows' classes; see the package."""
    return (classes[:, None] == classes).to(x.dtype) @ x
