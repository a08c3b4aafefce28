"""Rows of tokens by index, and the way back: each is the other's gradient."""

from typing import Any

import torch
from torch import Tensor

from sslfast.kernels import registry
from sslfast.kernels.gather_patches import problem
from sslfast.kernels.library import NAMESPACE


@torch.library.custom_op(f"{NAMESPACE}::gather_patches", mutates_args=())
def gather_patches(tokens: Tensor, ids: Tensor) -> Tensor:
    """Take rows [B, K, D] of tokens [B, L, D], any floating dtype, at ids int64 [B, K]."""
    backend = registry.pick("gather_patches", problem(tokens, ids, tokens.shape[1]))
    return backend.gather(tokens, ids)


@gather_patches.register_fake
def _(tokens: Tensor, ids: Tensor) -> Tensor:
    return tokens.new_empty(*ids.shape, tokens.shape[2])


@torch.library.custom_op(f"{NAMESPACE}::scatter_patches", mutates_args=())
def scatter_patches(rows: Tensor, ids: Tensor, length: int) -> Tensor:
    """Add rows [B, K, D] at ids int64 [B, K] into zeros [B, length, D]."""
    backend = registry.pick("gather_patches", problem(rows, ids, length))
    return backend.scatter(rows, ids, length)


@scatter_patches.register_fake
def _(rows: Tensor, ids: Tensor, length: int) -> Tensor:
    return rows.new_empty(rows.shape[0], length, rows.shape[2])


def _save_gather(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    tokens, ids = inputs
    ctx.save_for_backward(ids)
    ctx.length = tokens.shape[1]


def _save_scatter(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _gather_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
    return scatter_patches(gradient, *ctx.saved_tensors, ctx.length), None


def _scatter_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
    return gather_patches(gradient, *ctx.saved_tensors), None, None


gather_patches.register_autograd(_gather_backward, setup_context=_save_gather)
scatter_patches.register_autograd(_scatter_backward, setup_context=_save_scatter)
