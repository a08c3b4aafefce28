"""What the losses' ops share: no second derivative, and gradients formed in the forward pass."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor


def refuse_double_backward(gradients: Sequence[Tensor | None]) -> None:
    """Raise RuntimeError if anything comes from above for what a backward pass returned."""
    if any(gradient is not None for gradient in gradients):
        raise RuntimeError(
            "sslfast: this loss has no second derivative; "
            "call backward() without create_graph=True, or use a loss written in plain PyTorch"
        )


class _Once(torch.autograd.Function):
    """Gradients as they are, hanging on all that they were made of."""

    @staticmethod
    def forward(ctx: Any, gradients: tuple[Tensor | None, ...], *sources: Tensor) -> Any:
        ctx.set_materialize_grads(False)
        return gradients

    @staticmethod
    def backward(ctx: Any, *d_gradients: Tensor | None) -> None:
        refuse_double_backward(d_gradients)


def first_order(backward: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
    """The backward pass of an autograd.Function that has no second derivative.

    Without this, what the pass computes from detached tensors would be a constant to a second
    backward pass, and its terms would be missing without a word.

    Args:
        backward: takes ctx and what comes from above, returns the gradients. The Function must
            have saved its differentiable inputs, not copies of them.

    Returns:
        The same pass; with create_graph=True, going back through its gradients raises
        RuntimeError.
    """

    @wraps(backward)
    def once(ctx: Any, *above: Tensor | None) -> tuple[Any, ...]:
        with torch.no_grad():
            gradients = backward(ctx, *above)
        if not torch.is_grad_enabled():
            return gradients
        sources = [t for t in (*above, *ctx.saved_tensors) if t is not None and t.requires_grad]
        return _Once.apply(gradients, *sources) if sources else gradients

    return once


def times(gradient: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """A saved gradient times what comes from above, 0-d, in a dtype.

    On a CPU the usual factor of 1 copies nothing. While a graph is traced the factor is no plain
    tensor, and has no value.
    """
    if type(factor) is Tensor and factor.device.type == "cpu" and factor.item() == 1:
        return gradient.to(dtype)
    return (gradient * factor).to(dtype)
