"""Parameters and their gradients as the kernels take them."""

import torch
from torch import Tensor

from sslfast.ema.update import local_shard
from sslfast.kernels.dtypes import FLOATS
from sslfast.kernels.tensors import is_dense, same_layout


def gradient_of(p: Tensor) -> Tensor:
    """The gradient, which there is."""
    assert p.grad is not None
    return p.grad


def without_holes(local: Tensor) -> Tensor:
    """The local part of a parameter, or a copy of it where it is a view with holes.

    Raises:
        ValueError: elements may lie in the same place of memory.
    """
    if is_dense(local):
        return local
    reach = 0
    for stride, size in sorted(zip(local.stride(), local.shape, strict=True)):
        if size > 1 and stride <= reach:
            raise ValueError(
                f"elements of a parameter of shape {list(local.shape)} share memory (expand): make "
                "it contiguous"
            )
        reach += stride * (size - 1)
    return torch.empty_like(local).copy_(local)


def local_gradient(p: Tensor, part: Tensor) -> Tensor:
    """The local part of a gradient, in the layout of its parameter's."""
    gradient = local_shard(gradient_of(p))
    return gradient if same_layout(part, gradient) else torch.empty_like(part).copy_(gradient)


def check(p: Tensor, first: Tensor) -> None:
    """Raise for a parameter, or its gradient, that cannot be updated beside the first."""
    shape, gradient = list(p.shape), gradient_of(p)
    if p.dtype not in FLOATS:
        raise TypeError(f"a parameter of shape {shape} is {p.dtype}: only real numbers are trained")
    if gradient.layout != torch.strided:
        raise TypeError(f"the gradient of a parameter of shape {shape} is sparse: make it dense")
    if gradient.shape != p.shape:
        raise ValueError(
            f"the gradient of a parameter of shape {shape} has shape {list(gradient.shape)}"
        )
    if gradient.dtype != p.dtype:
        raise TypeError(
            f"the gradient of a parameter of shape {shape} is {gradient.dtype}, but the parameter "
            f"{p.dtype}"
        )
    if p.device != first.device:
        raise ValueError(
            f"parameters are on {first.device} and {p.device}: make an optimiser for each device"
        )
