"""What all ops share: their namespace, no second derivative, gradients formed in the forward pass.

torch.compile keeps compiled graphs on disk, and finds them by the names of the ops that are called.
Under the same name a graph of an earlier schema would be found too, and fail, or worse: so the
version of the schemas is part of the names.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# Raise it, as tests/kernels/test_op_schemas.py says, whenever the arguments or results of an op
# change: their types, or what they mean. A new op alone does not raise it.
VERSION = 4
NAMESPACE = f"sslfast_{VERSION}"


def refuse_double_backward(gradients: Sequence[Tensor | None]) -> None:
    """Raise RuntimeError if there is an upstream gradient of what a backward pass returned."""
    if any(gradient is not None for gradient in gradients):
        raise RuntimeError(
            "sslfast: this loss has no second derivative; "
            "call backward() without create_graph=True, or use a loss written in plain PyTorch"
        )


def no_double_backward(ctx: Any, *gradients: Tensor | None) -> None:
    """The backward pass of an op that is a backward pass itself: to be registered with it."""
    refuse_double_backward(gradients)


def times(gradient: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """A saved gradient times the upstream gradient, 0-d, in a dtype.

    On a CPU the usual factor of 1 copies nothing, unless the graph is retained: what is handed out
    may become a ``.grad``, which people change in place, and is saved for the next backward pass.
    While a graph is traced the factor is no plain tensor, and has no value. The product is rounded
    as it is written: on a GPU there is no copy of it in the gradient's dtype, which for a
    vocabulary's weights would take a gigabyte.
    """
    if torch.is_grad_enabled() and gradient.requires_grad:
        # With create_graph=True, where torch would refuse out= before this package can say why.
        return (gradient * factor).to(dtype)
    if type(factor) is Tensor and factor.device.type == "cpu" and factor.item() == 1:
        retained = torch._C._autograd._get_current_graph_task_keep_graph()
        return gradient.to(dtype, copy=retained)
    return torch.mul(gradient, factor, out=torch.empty_like(gradient, dtype=dtype))
