"""The oracle: the definition, a tensor at a time."""

import torch
from torch import Tensor

from sslfast.kernels.adamw import Tensors
from sslfast.kernels.ema import reference as ema

DEVICE = "any"
PRIORITY = 0


def step(tensors: Tensors, groups: Tensor, control: Tensor) -> None:
    """One step; see the package."""
    factor, momentum = control.unbind()
    left_out = factor < 0

    def put(target: Tensor, value: Tensor) -> None:
        target.copy_(torch.where(left_out, target, value.to(target.dtype)))

    for n, p in enumerate(tensors.params):
        lr, beta1, beta2, eps, weight_decay = groups[tensors.groups[n]].unbind()
        dtype = torch.float64 if p.dtype == torch.float64 else torch.float32
        t, g = tensors.steps[n].double(), factor * tensors.grads[n].to(dtype)
        m = torch.lerp(tensors.exp_avgs[n].to(dtype), g, (1 - beta1).to(dtype))
        v = beta2 * tensors.exp_avg_sqs[n].to(dtype) + (1 - beta2) * g * g
        update = m / (1 - beta1**t) / ((v / (1 - beta2**t)).sqrt() + eps)
        put(p, (1 - lr * weight_decay) * p.to(dtype) - lr * update)
        put(tensors.exp_avgs[n], m)
        put(tensors.exp_avg_sqs[n], v)
        teacher = tensors.teachers[n]
        if teacher is not None:
            ema.update([teacher], [p], torch.where(left_out, 1.0, momentum))
