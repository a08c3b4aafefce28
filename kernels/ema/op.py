"""Exponential moving averages of lists of tensors in place; see kernels/ema."""

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from sslfast.kernels import ema as kernels
from sslfast.kernels import registry
from sslfast.kernels.library import NAMESPACE
from sslfast.kernels.tensors import Rows

# Not torch.library.custom_op: its checks cost 0.4 us a tensor, this 0.1.
torch.library.define(
    f"{NAMESPACE}::ema_update_", "(Tensor(a!)[] teacher, Tensor[] student, Tensor momentum) -> ()"
)


def _update(
    teacher: list[Tensor], student: list[Tensor], momentum: Tensor, table: Rows | None = None
) -> None:
    backend = registry.pick("ema", kernels.problem(teacher, student, table))
    with torch.no_grad():
        backend.update(teacher, student, momentum.to(torch.float64), table)
    torch.autograd.graph.increment_version(teacher)


torch.library.impl(f"{NAMESPACE}::ema_update_", "CompositeExplicitAutograd", _update)


@torch.library.register_fake(f"{NAMESPACE}::ema_update_")
def _(teacher: list[Tensor], student: list[Tensor], momentum: Tensor) -> None:
    return None


_op = getattr(torch.ops, NAMESPACE).ema_update_


def ema_update_(
    teacher: list[Tensor], student: list[Tensor], momentum: Tensor, table: Rows | None = None
) -> None:
    """Move every teacher tensor towards its student, in place.

    Args:
        teacher: floating-point tensors, all on one device.
        student: as many, of the same shapes, of any floating dtypes, on the same device.
        momentum: float64 [] on the same device.
        table: of these pairs, where the caller has made one (``kernels.tensors.plain_rows``).
    """
    if table is None or is_in_torch_dispatch_mode():
        _op(teacher, student, momentum)
    else:  # ordinary tensors, and nobody traces: the dispatcher would take longer than the update
        _update(teacher, student, momentum, table)
