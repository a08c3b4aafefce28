"""Pairwise sigmoid loss (SigLIP, Zhai et al. 2023, arXiv:2303.15343) without the M x N logits.

With logits t_ij = scale <x_i, y_j> + bias and z_ij = 1 for the positives that the pairing names, -1
for all others, every backend has two functions.

``forward(rows, columns, scale, bias, pairing) -> loss [M]``
    loss_i = sum_j log(1 + exp(-z_ij t_ij)).

``gradients(rows, columns, scale, bias, pairing, row_weight, columns_gradient)
    -> (loss [M], U [M, D], V [N, D], d_bias [M])``
    The same, and with G_ij = -row_weight_i z_ij / (1 + exp(z_ij t_ij)): U_i = sum_j G_ij y_j,
    V_j = sum_i G_ij x_i (empty where not asked for), d_bias_i = sum_j G_ij. The gradient of x_i is
    scale U_i, that of the scale sum_i <x_i, U_i>. No normaliser has to be known first, so value and
    gradients come from one pass: 6 M N D FLOP.

rows [M, D], columns [N, D]: one floating dtype, contiguous; scale, bias: 0-d; all else has the
accumulation dtype. The pairing leaves nobody out.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sslfast.kernels.similarity_softmax import Pairing


@dataclass(frozen=True)
class Problem:
    """What a backend is asked to do."""

    device: str
    dtype: torch.dtype
    rows: int
    columns: int
    dim: int
    pairing: Pairing


def problem(rows: Tensor, columns: Tensor, pairing: Pairing) -> Problem:
    """Describe the inputs of an op for the registry."""
    return Problem(rows.device.type, rows.dtype, len(rows), len(columns), rows.shape[1], pairing)
