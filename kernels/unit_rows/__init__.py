"""Rows divided by their norms, and their gradient: what surrounds the similarity softmax.

``normalize(x) -> (z [M, D], norms [M])``
    norms_i = max(||x_i||, EPS) in the accumulation dtype, z_i = x_i / norms_i in the dtype of x.

``gradient(parts, z, norms, scale, positives, share) -> (dx [M, D], inner)``
    With V = sum_s parts_s, and what ``positives`` add to it,
    dx_i = scale / norms_i (V_i - z_i <z_i, V_i>) in the dtype of z, and
    inner = share sum_i <z_i, V_i>, 0-d; [0] where share is None.
    norms None: rows as they are, dx = scale V. parts [S, M, D] are in the accumulation dtype, which
    inner has too, and may be overwritten.

A row no longer than EPS has no direction: its gradient is 0. That of F.normalize is what comes from
above times 1 / EPS, beyond fp16 and, in any dtype, the end of a training run.
x and z: any floating dtype, contiguous. Non-finite in, non-finite out.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sslfast.kernels.similarity_softmax import Pairing

EPS = 1e-12  # of torch.nn.functional.normalize; in the accumulation dtype, so fp16 has no NaN


@dataclass(frozen=True)
class Positives:
    """What pairs add to the gradient: (own_a + partner_b) other_j to row i, for 0 <= a < length.

    i = row_base + a, b = (a + shift) % length and j = column_base + b, as in ``Pairing``.

    Attributes:
        pairing: Which rows are pairs.
        other: The columns [N, D], of the dtype of the rows.
        own: Weights [length] in the order of the rows, or None for nothing from them.
        partner: Weights [length] in the order of the columns, or None.
    """

    pairing: Pairing
    other: Tensor
    own: Tensor | None
    partner: Tensor | None


@dataclass(frozen=True)
class Problem:
    """What a backend is asked to do."""

    device: str
    dtype: torch.dtype
    rows: int
    dim: int


def problem(x: Tensor) -> Problem:
    """Describe the rows for the registry."""
    return Problem(x.device.type, x.dtype, *x.shape)
