"""The oracle: a product with the matrix of equal classes."""

from torch import Tensor

DEVICE = "any"
PRIORITY = 0


def sums(x: Tensor, classes: Tensor) -> Tensor:
    """Sums of the rows' classes; see the package."""
    return (classes[:, None] == classes).to(x.dtype) @ x
