"""The oracle: the definition, a tensor at a time."""

import torch
from torch import Tensor

from sslfast.kernels.ema import reference as ema
from sslfast.kernels.lars import Tensors

DEVICE = "any"
PRIORITY = 0


def step(tensors: Tensors, groups: Tensor, control: Tensor, trust: Tensor) -> None:
    """One step; see the package."""
    factor, teacher_momentum = control.unbind()
    left_out = factor < 0

    def put(target: Tensor, value: Tensor) -> None:
        target.copy_(torch.where(left_out, target, value.to(target.dtype)))

    for n, p in enumerate(tensors.params):
        lr, momentum, weight_decay, nesterov = groups[tensors.groups[n]].unbind()
        dtype = torch.float64 if p.dtype == torch.float64 else torch.float32
        decayed = factor * tensors.grads[n].to(dtype) + weight_decay * p.to(dtype)
        direction = trust[n] * decayed
        buffer, teacher = tensors.buffers[n], tensors.teachers[n]
        moved = direction if buffer is None else momentum * buffer.to(dtype) + direction
        if buffer is not None:
            put(buffer, moved)
        put(p, p.to(dtype) - lr * torch.where(nesterov > 0, direction + momentum * moved, moved))
        if teacher is not None:
            ema.update([teacher], [p], torch.where(left_out, 1.0, teacher_momentum))
