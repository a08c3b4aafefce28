"""LARS, and SGD with momentum, over many tensors, and the teacher in the same pass.

With numbers of the tensor's group and its trust ratio r, 1 for plain SGD (You et al. 2017,
arXiv:1708.03888, algorithm 1; without dampening):

    d <- r (factor * gradient + weight_decay p)
    b <- momentum b + d                    p <- p - lr (nesterov ? d + momentum b : b)
    teacher <- its momentum * teacher + (1 - its momentum) p

Every backend has ``step(tensors, groups, control, trust)``, in place, with ``groups`` float64
[G, 4] (lr, momentum, weight_decay, nesterov as 0 or 1), ``control`` float64 [2] (factor, momentum
of the teacher) and ``trust`` float64 [tensors] on the tensors' device, which are not read on the
host of a GPU; a negative factor leaves the whole step out. Arithmetic is in float32, or float64
for float64.

Traffic: 20 bytes an element in float32, 28 with a teacher; the norms behind r take another 8.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FIELDS = ("lr", "momentum", "weight_decay", "nesterov")


@dataclass(frozen=True)
class Tensors:
    """What one step reads and writes; the same place of every list belongs together.

    Attributes:
        params: of any floating dtypes.
        grads: of the parameter's shape, dtype and layout (``kernels.tensors.same_layout``).
        buffers: the same, or None where the momentum is 0.
        teachers: of the parameter's shape and layout and any floating dtype, or None.
        groups: index of the parameter's group.
    """

    params: Sequence[Tensor]
    grads: Sequence[Tensor]
    buffers: Sequence[Tensor | None]
    teachers: Sequence[Tensor | None]
    groups: Sequence[int]

    @property
    def columns(self) -> tuple[Sequence[Tensor | None], ...]:
        """In the order of csrc/include/sslfast/rows.h."""
        none = [None] * len(self.params)
        return self.params, self.grads, self.buffers, none, none, self.teachers


@dataclass(frozen=True)
class Problem:
    """What a backend is asked to do."""

    device: str
    types: frozenset[torch.dtype]


def problem(tensors: Tensors) -> Problem:
    """Describe the inputs for the registry."""
    device = tensors.params[0].device.type if tensors.params else "cpu"
    return Problem(device, frozenset(p.dtype for p in tensors.params))
