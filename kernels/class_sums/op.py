"""Sums over the rows of a class: torch.library schema, fake, autograd -> a backend."""

from typing import Any

import torch
from torch import Tensor

from sslfast.kernels import class_sums as kernels
from sslfast.kernels import registry
from sslfast.kernels.library import NAMESPACE

OP = "class_sums"


@torch.library.custom_op(f"{NAMESPACE}::class_sums", mutates_args=())
def class_sums(x: Tensor, classes: Tensor) -> Tensor:
    """Of every row, the sum of all rows of its class, itself among them.

    Args:
        x: [M, D], float32 or float64.
        classes: int64 [M] on the same device, within [0, M), as from ``classes_of``.

    Returns:
        [M, D] in the dtype of x. Differentiable as often as asked.
    """
    return registry.pick(OP, kernels.problem(x)).sums(x, classes)


@class_sums.register_fake
def _(x: Tensor, classes: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
    return class_sums(gradient, *ctx.saved_tensors), None


class_sums.register_autograd(_backward, setup_context=_setup_context)


def classes_of(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Of every row, a number of its class in [0, M), and how many rows that has: int64 [M] each."""
    labels = labels.contiguous()  # or searchsorted warns
    known = labels.sort().values
    first = torch.searchsorted(known, labels)
    return first, torch.searchsorted(known, labels, right=True) - first


def in_pairs(classes: Tensor, sizes: Tensor) -> Tensor:
    """An order int64 [M] in which rows i and i + M // 2 share a class, as far as that goes.

    Rows that are left over, one of each class of an odd size, share pairs at the end of both
    halves; of an odd M the last row is alone.
    """
    order = classes.argsort(stable=True)
    place = torch.arange(len(order), device=order.device) - classes[order]  # within its class
    over = (place % 2 == 0) & (place + 1 == sizes[order])
    order = order[over.int().argsort(stable=True)]
    half = len(order) // 2
    pairs = order[: 2 * half].view(half, 2)
    return torch.cat((pairs[:, 0], pairs[:, 1], order[2 * half :]))
