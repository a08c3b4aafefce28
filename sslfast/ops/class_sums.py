"""Sums over the rows of a class: torch.library schema, fake, autograd -> a backend."""

from typing import Any

import torch
from torch import Tensor

from sslfast.kernels import class_sums as kernels
from sslfast.kernels import registry

OP = "class_sums"


@torch.library.custom_op("sslfast::class_sums", mutates_args=())
def class_sums(x: Tensor, labels: Tensor) -> Tensor:
    """Of every row, the sum of all rows with its label, itself among them.

    Args:
        x: [M, D], float32 or float64.
        labels: int64 or int32 [M] on the same device.

    Returns:
        [M, D] in the dtype of x. Differentiable as often as asked.
    """
    return registry.pick(OP, kernels.problem(x)).sums(x, labels)


@class_sums.register_fake
def _(x: Tensor, labels: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
    return class_sums(gradient, *ctx.saved_tensors), None


class_sums.register_autograd(_backward, setup_context=_setup_context)


def class_sizes(labels: Tensor) -> Tensor:
    """Of every row, how many rows have its label, itself among them: int64 [M]."""
    known = labels.sort().values
    return torch.searchsorted(known, labels, right=True) - torch.searchsorted(known, labels)
