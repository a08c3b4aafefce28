"""Cross-entropy between a teacher's and a student's softmax over prototypes, without N x K scores.

What DINO, iBOT, DINOv2, SwAV and MSN minimise. Of G samples (images, or masked patches) the
student has S views and the teacher T. With scores

    x_sgk = student.scale <student.rows_sg, student.weight_k>
    y_tgk = teacher.scale <teacher.rows_tg, teacher.weight_k> + teacher.bias_tk

and p, q their softmaxes over the K prototypes, every backend has one function.

``losses(student, teacher, pairs, row_weight, wants)
    -> (loss [S, G], entropy [T, G], usage [K], d_rows [S, G, D], d_weight [K, D])``
    loss_sg = - sum_t pairs_st sum_k q_tgk log p_sgk, entropy_tg = - sum_k q_tgk log q_tgk,
    usage_k the mean of q_tgk over t and g, and the gradients of sum_sg row_weight_sg loss_sg to
    student.rows and student.weight, with

        G_sgk = row_weight_sg student.scale sum_t pairs_st (p_sgk - q_tgk),
        d_rows = G weight, d_weight = G^T rows.

    ``wants`` says which are needed; others are empty, as both are where row_weight is None.
    The teacher gets no gradient: its softmax is a target.

As the loss is linear in q, a student's row meets one target, sum_t pairs_st q_tg, however many
views the teacher has: 2 (S + 2 S + T) G K D FLOP with gradients, S + T softmaxes a sample.

The bias is the form of every way to keep prototypes in use: -center / temperature is DINO's
centring, and the logarithm of a Sinkhorn scaling vector gives SwAV's codes, exp(y_tgk) u_tg v_k,
whose u makes every row's sum 1, as a softmax does. The mean of the scores, of which the centre is
made, is the score of the mean row: no pass over them is needed.

rows [S, G, D], [T, G, E], weights [K, D], [K, E]: one floating dtype, contiguous. scales 0-d, bias
[T, K], pairs [S, T], row_weight [S, G]: of the accumulation dtype, as all results are: float32, or
float64 for float64 inputs.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Side:
    """The scores of a student or a teacher; see the package."""

    rows: Tensor
    weight: Tensor
    scale: Tensor
    bias: Tensor | None = None


class Wants(NamedTuple):
    """Which gradients are needed."""

    rows: bool
    weight: bool


@dataclass(frozen=True)
class Problem:
    """What a backend is asked to do.

    Attributes:
        device: its type.
        dtype: of rows and weights.
        rows: S G of the student.
        targets: T G of the teacher.
        prototypes: K.
        dim: D.
    """

    device: str
    dtype: torch.dtype
    rows: int
    targets: int
    prototypes: int
    dim: int


def problem(student: Tensor, teacher: Tensor, weight: Tensor) -> Problem:
    """Describe the inputs of an op for the registry."""
    rows, targets = student.shape[:2].numel(), teacher.shape[:2].numel()
    return Problem(student.device.type, student.dtype, rows, targets, *weight.shape)


Results = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
