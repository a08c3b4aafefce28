"""Torch only, any device: one node at a time."""

from torch import Tensor

from sslfast.kernels.dtypes import statistics_dtype
from sslfast.kernels.sigreg import Form

DEVICE = "any"
PRIORITY = 10


def sums(p: Tensor, form: Form) -> Tensor:
    """Sums of cosines and sines; see the package."""
    views, _, directions = p.shape
    found = p.new_empty(views, 2, form.count, directions, dtype=statistics_dtype(p))
    for k, at in enumerate(found.unbind(2), 1):
        angles = p * (k * form.step)
        at[:, 0] = angles.cos().sum(1, dtype=found.dtype)
        at[:, 1] = angles.sin_().sum(1, dtype=found.dtype)
    return found


def gradient_(p: Tensor, coefficients: Tensor, form: Form) -> None:
    """Gradient of the projections, in their place; see the package."""
    given, total = p.clone(), p.zero_()
    for k, at in enumerate(coefficients.unbind(2), 1):
        of_cos, of_sin = at.unsqueeze(2).unbind(1)
        angles = given * (k * form.step)
        total.addcmul_(of_cos, angles.cos()).addcmul_(of_sin, angles.sin_())
