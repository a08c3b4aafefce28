"""Sums over the rows of a class, one for each row: y_i = sum_{j : class_j = class_i} x_j.

``sums(x [M, D], classes int64 [M]) -> y [M, D]`` in the dtype of x, which is float32 or float64;
classes are numbered in any way within [0, M). The matrix of equal classes is symmetric: the
gradient of x is the same function of that of y. Results are the same from run to run.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Problem:
    """What a backend is asked to do."""

    device: str
    dtype: torch.dtype


def problem(x: Tensor) -> Problem:
    """Describe the inputs of an op for the registry."""
    return Problem(x.device.type, x.dtype)
