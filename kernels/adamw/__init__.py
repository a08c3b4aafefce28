"""AdamW over many tensors, and the teacher in the same pass.

With g = factor * gradient, step t and numbers of the tensor's group (Loshchilov and Hutter 2019,
arXiv:1711.05101, algorithm 2):

    m <- m + (1 - beta1)(g - m)        v <- beta2 v + (1 - beta2) g^2
    p <- (1 - lr weight_decay) p - lr / (1 - beta1^t) m / (sqrt(v / (1 - beta2^t)) + eps)
    teacher <- momentum teacher + (1 - momentum) p

Every backend has ``step(tensors, groups, control)``, in place, with ``groups`` float64 [G, 5] (lr,
beta1, beta2, eps, weight_decay) and ``control`` float64 [2] (factor, momentum) on the tensors'
device, which are not read on the host of a GPU; a negative factor leaves the whole step out.
Arithmetic is in float32, or float64 for float64.

Traffic: 28 bytes an element in float32, 36 with a teacher; an update of its own would take 40.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FIELDS = ("lr", "beta1", "beta2", "eps", "weight_decay")


@dataclass(frozen=True)
class Tensors:
    """What one step reads and writes; the same place of every list belongs together.

    Attributes:
        params: of any floating dtypes.
        grads, exp_avgs, exp_avg_sqs: of the parameter's shape, dtype and layout
            (``kernels.tensors.same_layout``).
        steps: float32 [], this step included.
        teachers: of the parameter's shape and layout and any floating dtype, or None.
        groups: index of the parameter's group.
    """

    params: Sequence[Tensor]
    grads: Sequence[Tensor]
    exp_avgs: Sequence[Tensor]
    exp_avg_sqs: Sequence[Tensor]
    steps: Sequence[Tensor]
    teachers: Sequence[Tensor | None]
    groups: Sequence[int]

    @property
    def columns(self) -> tuple[Sequence[Tensor | None], ...]:
        """In the order of csrc/include/sslfast/rows.h."""
        moments = self.exp_avgs, self.exp_avg_sqs
        return self.params, self.grads, *moments, self.steps, self.teachers


@dataclass(frozen=True)
class Problem:
    """What a backend is asked to do."""

    device: str
    types: frozenset[torch.dtype]


def problem(tensors: Tensors) -> Problem:
    """Describe the inputs for the registry."""
    device = tensors.params[0].device.type if tensors.params else "cpu"
    return Problem(device, frozenset(p.dtype for p in tensors.params))
