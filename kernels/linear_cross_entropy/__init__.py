"""Cross-entropy over the classes of a linear layer, without the N x V logits.

With logits t_ij = <hidden_i, weight_j> + bias_j and targets y, every backend has two functions.
With a softcap c > 0 (Gemma 2, arXiv:2408.00118, section 2), t_ij = c tanh((that sum) / c).

``forward(hidden, weight, bias, targets, softcap=None) -> (lse [N], target_logit [N])``
    lse_i = log sum_{j != y_i} exp(t_ij), target_logit_i = t_i,y_i. Leaving the target out keeps the
    loss exact where the model is sure: loss_i = softplus(lse_i - target_logit_i).

``gradients(hidden, weight, bias, targets, row_weight, smoothing, wants, softcap=None)
    -> (lse, target_logit, d_hidden [N, D], d_weight [V, D], d_bias [V])``
    The same, and the gradients of sum_i row_weight_i loss_i with
    loss_i = softplus(lse_i - target_logit_i) + smoothing (target_logit_i - mean_j t_ij):
    G_ij = row_weight_i (p_ij - [j = y_i] + smoothing ([j = y_i] - 1/V)), with a softcap times
    1 - (t_ij / c)^2, d_hidden = G weight, d_weight = G^T hidden, d_bias_j = sum_i G_ij.
    ``wants`` says which are needed; others are empty.
    Weights known beforehand are what makes 6 N V D FLOP enough: a block of rows forms its
    gradients right after its log-sum-exps, from the same logits.

hidden [N, D], weight [V, D], bias [V] or None: one floating dtype, contiguous. targets: int64 [N],
in [0, V); or the logits of targets that are no class here, as the keys of MoCo's queries are not in
its queue: floating [N] in the accumulation dtype. Then lse is over all classes and nothing is
smoothed, and these logits are taken as they are. All results have the accumulation dtype: float32,
or float64 for float64 inputs.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Wants(NamedTuple):
    """Which gradients are needed."""

    hidden: bool
    weight: bool
    bias: bool


@dataclass(frozen=True)
class Problem:
    """What a backend is asked to do."""

    device: str
    dtype: torch.dtype
    rows: int
    classes: int
    dim: int


def problem(hidden: Tensor, weight: Tensor) -> Problem:
    """Describe the inputs of an op for the registry."""
    return Problem(hidden.device.type, hidden.dtype, len(hidden), len(weight), hidden.shape[1])
