"""The similarity softmax of groups: schema, fake, autograd -> a backend of the registry."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sslfast.kernels import grouped_softmax as kernels
from sslfast.kernels import registry
from sslfast.kernels.dtypes import statistics_dtype
from sslfast.kernels.grouped_softmax import Groups, Side
from sslfast.kernels.library import NAMESPACE, no_double_backward
from sslfast.kernels.similarity_softmax import kept_size, new_kept

OP = "grouped_softmax"


def grouped_softmax(
    rows: Tensor, columns: Tensor | None, scale: Tensor, groups: Groups, *, sides: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-sum-exps over the negatives and over the positives of every row.

    Args:
        rows: X [M, D], float16, bfloat16, float32 or float64.
        columns: Y [N, D] of the same dtype and device, or None for the symmetric form Y = X.
        scale: 1 / temperature, a 0-d tensor of the accumulation dtype; may need a gradient.
        groups: which columns are what.
        sides: also those of the columns.

    Returns:
        Negatives and positives of the rows [M], and of the columns [N] (or [0]), in the statistics
        dtype; -inf where there are none.
    """
    keep = kept_size(rows, columns) if rows.requires_grad and torch.is_grad_enabled() else 0
    return _grouped_softmax(
        rows,
        columns,
        scale,
        groups.row,
        groups.column,
        groups.row_ignored,
        groups.column_ignored,
        groups.threshold,
        groups.own,
        sides,
        keep,
    )[:4]


def _for(backend: Any, kept: Tensor | None) -> tuple[Tensor | None, ...]:
    """The last argument of a backend that keeps logits; nothing for the others."""
    return (kept,) if backend.FEATURES.keeps_logits else ()


@torch.library.custom_op(f"{NAMESPACE}::grouped_softmax", mutates_args=())
def _grouped_softmax(
    rows: Tensor,
    columns: Tensor | None,
    scale: Tensor,
    row_groups: Tensor,
    column_groups: Tensor,
    row_ignored: Tensor | None,
    column_ignored: Tensor | None,
    threshold: float | None,
    own: int | None,
    sides: bool,
    keep: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The op behind it; the last result is memory for the backward pass."""
    x, y = rows.contiguous(), None if columns is None else columns.contiguous()
    groups = Groups(row_groups, column_groups, row_ignored, column_ignored, threshold, own)
    backend = registry.pick(OP, kernels.problem(x, y))
    kept = new_kept(rows, keep)
    with torch.autocast(rows.device.type, enabled=False):  # sums are never in half precision
        return *backend.forward(x, y, scale, groups, sides, *_for(backend, kept)), kept


@_grouped_softmax.register_fake
def _(
    rows: Tensor, columns: Tensor | None, scale: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    *_, sides, keep = rest
    lse = rows.new_empty(rows.shape[0], dtype=statistics_dtype(rows))
    n = (rows if columns is None else columns).shape[0] if sides else 0
    kept = rows.new_empty(keep, dtype=torch.float32)
    return lse, torch.empty_like(lse), lse.new_empty(n), lse.new_empty(n), kept


@torch.library.custom_op(f"{NAMESPACE}::grouped_softmax_backward", mutates_args=())
def _grouped_softmax_backward(
    upstream: Sequence[Tensor],
    lses: Sequence[Tensor],
    rows: Tensor,
    columns: Tensor | None,
    scale: Tensor,
    row_groups: Tensor,
    column_groups: Tensor,
    row_ignored: Tensor | None,
    column_ignored: Tensor | None,
    threshold: float | None,
    own: int | None,
    columns_gradient: bool,
    kept: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of rows, columns (empty where not asked for) and scale; recomputes the tiles.

    upstream and lses: of negatives and positives of the rows and, where they have them, the
    columns.
    """
    x, y = rows.contiguous(), None if columns is None else columns.contiguous()
    groups = Groups(row_groups, column_groups, row_ignored, column_ignored, threshold, own)
    backend = registry.pick(OP, kernels.problem(x, y))
    sides: list[Side | None] = list(zip(lses, upstream, strict=True))
    sides += [None] * (4 - len(sides))
    share = 1.0
    if y is None:
        # Row i is also a column: with that role come its share of G, and every similarity is
        # counted from both its ends.
        if len(lses) == 4:
            added = (upstream[k] + upstream[k + 2] for k in range(2))
            sides = list(zip(lses, added, strict=False))
        sides, share = [sides[0], sides[1]] * 2, 0.5
    with torch.autocast(rows.device.type, enabled=False):
        u, v = backend.backward(
            *(x, y, scale, groups, *sides, columns_gradient), *_for(backend, kept)
        )
        d_scale = (share * torch.linalg.vecdot(x.to(u.dtype), u).sum()).to(scale.dtype)
        return u.mul_(scale).to(rows.dtype), v.mul_(scale).to(rows.dtype), d_scale


@_grouped_softmax_backward.register_fake
def _(
    upstream: Sequence[Tensor],
    lses: Sequence[Tensor],
    rows: Tensor,
    columns: Tensor | None,
    scale: Tensor,
    row_groups: Tensor,
    column_groups: Tensor,
    row_ignored: Tensor | None,
    column_ignored: Tensor | None,
    threshold: float | None,
    own: int | None,
    columns_gradient: bool,
    kept: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    dy = rows.new_empty(0 if columns is None or not columns_gradient else columns.shape)
    return rows.new_empty(rows.shape), dy, torch.empty_like(scale)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.threshold, ctx.own, ctx.sides, _ = inputs
    ctx.mark_non_differentiable(output[4])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *output)


def _backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
    rows, columns, scale, *ids = ctx.saved_tensors[:7]
    *lses, kept = ctx.saved_tensors[7:]
    lses = lses if ctx.sides else lses[:2]
    given = [
        torch.zeros_like(lse) if d is None else d.contiguous()
        for d, lse in zip(upstream, lses, strict=False)
    ]
    columns_gradient = ctx.needs_input_grad[1]
    dx, dy, d_scale = _grouped_softmax_backward(
        *(given, lses, rows, columns, scale, *ids, ctx.threshold, ctx.own),
        *(columns_gradient, kept),
    )
    return dx, dy if columns_gradient else None, d_scale, *[None] * 8


_grouped_softmax.register_autograd(_backward, setup_context=_setup_context)
_grouped_softmax_backward.register_autograd(no_double_backward)
