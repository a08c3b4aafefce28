"""Exponential moving averages of lists of tensors in place; see kernels/ema."""

import torch
from torch import Tensor

from sslfast.kernels import ema as kernels
from sslfast.kernels import registry

# Not torch.library.custom_op: its checks cost 0.4 us a tensor, this 0.1.
torch.library.define(
    "sslfast::ema_update_", "(Tensor(a!)[] teacher, Tensor[] student, Tensor momentum) -> ()"
)


@torch.library.impl("sslfast::ema_update_", "CompositeExplicitAutograd")
def _(teacher: list[Tensor], student: list[Tensor], momentum: Tensor) -> None:
    backend = registry.pick("ema", kernels.problem(teacher, student))
    with torch.no_grad():
        backend.update(teacher, student, momentum)
    torch.autograd.graph.increment_version(teacher)


@torch.library.register_fake("sslfast::ema_update_")
def _(teacher: list[Tensor], student: list[Tensor], momentum: Tensor) -> None:
    return None


def ema_update_(teacher: list[Tensor], student: list[Tensor], momentum: Tensor) -> None:
    """Move every teacher tensor towards its student, in place.

    Args:
        teacher: floating-point tensors, all on one device.
        student: as many, of the same shapes, of any floating dtypes, on the same device.
        momentum: float64 [] on the same device.
    """
    torch.ops.sslfast.ema_update_(teacher, student, momentum)
