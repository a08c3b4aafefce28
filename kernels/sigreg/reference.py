"""The oracle: every cosine and sine of the definition, all in memory."""

import torch
from torch import Tensor

from sslfast.kernels.dtypes import statistics_dtype
from sslfast.kernels.sigreg import Form

DEVICE = "any"
PRIORITY = 0


def _angles(p: Tensor, form: Form) -> Tensor:
    """t_k p_i [V, K, N, m]."""
    t, _, _ = form.nodes(p)
    return t[:, None, None] * p[:, None]


def sums(p: Tensor, form: Form) -> Tensor:
    """Sums of cosines and sines; see the package."""
    angles = _angles(p, form)
    both = torch.stack((angles.cos(), angles.sin()), 1)
    return both.sum(3, dtype=statistics_dtype(p))


def gradient_(p: Tensor, coefficients: Tensor, form: Form) -> None:
    """Gradient of the projections, in their place; see the package."""
    angles = _angles(p, form)
    of_cos, of_sin = coefficients.unsqueeze(3).unbind(1)
    p.copy_((of_cos * angles.cos() + of_sin * angles.sin()).sum(1))
