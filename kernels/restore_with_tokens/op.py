"""Decoder input of a masked autoencoder: schema, fake, autograd -> a backend of the registry."""

from typing import Any

import torch
from torch import Tensor

from sslfast.kernels import registry
from sslfast.kernels.dtypes import accumulation_dtype
from sslfast.kernels.library import NAMESPACE
from sslfast.kernels.restore_with_tokens import problem

OP = "restore_with_tokens"


@torch.library.custom_op(f"{NAMESPACE}::restore_with_tokens", mutates_args=())
def restore_with_tokens(
    visible: Tensor, token: Tensor, ids_restore: Tensor, positions: Tensor | None
) -> Tensor:
    """Put rows back at their places, the token at all others, and add positions.

    Args:
        visible: [B, K, D], any floating dtype.
        token: [D], of the same dtype.
        ids_restore: int64 [B, L], a permutation in every row.
        positions: [L, D] of the same dtype, or None.

    Returns:
        [B, L, D].
    """
    backend = registry.pick(OP, problem(visible, ids_restore, visible.shape[1]))
    return backend.forward(visible, token, ids_restore, positions)


@restore_with_tokens.register_fake
def _(visible: Tensor, token: Tensor, ids_restore: Tensor, positions: Tensor | None) -> Tensor:
    return visible.new_empty(*ids_restore.shape, visible.shape[2])


@torch.library.custom_op(f"{NAMESPACE}::restore_with_tokens_backward", mutates_args=())
def restore_with_tokens_backward(
    gradient: Tensor, ids_restore: Tensor, keep: int
) -> tuple[Tensor, Tensor]:
    """Gradients of the rows [B, keep, D] and, in the accumulation dtype, of the token [D]."""
    backend = registry.pick(OP, problem(gradient, ids_restore, keep))
    return backend.backward(gradient, ids_restore, keep)


@restore_with_tokens_backward.register_fake
def _(gradient: Tensor, ids_restore: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    batch, _, dim = gradient.shape
    dtype = accumulation_dtype(gradient.dtype)
    return gradient.new_empty(batch, keep, dim), gradient.new_empty(dim, dtype=dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    visible, _, ids_restore, _ = inputs
    ctx.save_for_backward(ids_restore)
    ctx.keep = visible.shape[1]


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    (ids_restore,) = ctx.saved_tensors
    d_visible, d_token = restore_with_tokens_backward(gradient, ids_restore, ctx.keep)
    d_positions = gradient.sum(0) if ctx.needs_input_grad[3] else None
    return d_visible, d_token.to(gradient.dtype), None, d_positions


def _no_double_backward(ctx: Any, *gradients: Tensor) -> None:
    raise RuntimeError(
        "sslfast: restore_with_tokens has no second derivative; call backward() without "
        "create_graph=True, or use torch.cat and torch.gather"
    )


restore_with_tokens.register_autograd(_backward, setup_context=_setup_context)
restore_with_tokens_backward.register_autograd(_no_double_backward)
