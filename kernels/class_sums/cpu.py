"""On a CPU rows are added in turn, in float64: index_add has a deterministic order there."""

import torch
from torch import Tensor

DEVICE = "cpu"
PRIORITY = 20


def sums(x: Tensor, classes: Tensor) -> Tensor:
    """Sums of the rows' classes; see the package."""
    wide = x.to(torch.float64)
    totals = torch.zeros_like(wide).index_add_(0, classes, wide).to(x.dtype)
    return totals.index_select(0, classes)
