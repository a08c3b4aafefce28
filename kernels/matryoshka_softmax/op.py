"""The similarity softmaxes of prefixes: schema, fake, autograd -> a backend of the registry.

The backend's gradients are those of rows times their norms; what is left is the scale and, for
every prefix, the part along the row itself, which a division by its norm takes away.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sslfast.kernels import matryoshka_softmax as kernels
from sslfast.kernels import registry
from sslfast.kernels.dtypes import statistics_dtype
from sslfast.kernels.library import NAMESPACE, no_double_backward
from sslfast.kernels.matryoshka_softmax import Prefixes
from sslfast.kernels.similarity_softmax import Pairing, kept_size, new_kept

OP = "matryoshka_softmax"


def matryoshka_softmax(
    rows: Tensor,
    columns: Tensor | None,
    scale: Tensor,
    dims: Sequence[int],
    pairing: Pairing,
    *,
    normalize: bool,
    column_lse: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Row-wise log-sum-exps over negatives and positive logits of every prefix of the features.

    Args:
        rows: X [M, D], float16, bfloat16, float32 or float64.
        columns: Y [N, D] of the same dtype and device, or None for the symmetric form Y = X.
        scale: 1 / temperature, a 0-d tensor of the accumulation dtype; may need a gradient.
        dims: lengths of the K prefixes, growing; the last is D.
        pairing: of all rows; in the symmetric form its shift is M / 2.
        normalize: divide every prefix by its Euclidean norm; one no longer than EPS is taken for
            zeros.
        column_lse: also return the log-sum-exps of the columns.

    Returns:
        lse [K, M], positive [K, M] and column lse [K, N] (or [0]) in the statistics dtype.
    """
    lengths, keep = tuple(dims), 0
    if rows.requires_grad and torch.is_grad_enabled():
        keep = kept_size(rows, columns, sum(kernels.kept_prefixes(lengths)))
    found = _matryoshka_softmax(
        rows, columns, scale, lengths, pairing.numbers, normalize, column_lse, keep
    )
    return found[:3]


def _for(backend: Any, kept: Tensor | None) -> tuple[Tensor | None, ...]:
    """The last argument of a backend that keeps logits; nothing for the others."""
    return (kept,) if backend.FEATURES.keeps_logits else ()


@torch.library.custom_op(f"{NAMESPACE}::matryoshka_softmax", mutates_args=())
def _matryoshka_softmax(
    rows: Tensor,
    columns: Tensor | None,
    scale: Tensor,
    dims: Sequence[int],
    pairing: Sequence[int],
    normalize: bool,
    column_lse: bool,
    keep: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The op behind it; for the backward pass also memory, and 1 / norms of rows and columns."""
    pairs, lengths = Pairing.of(pairing), tuple(dims)
    x, y = rows.contiguous(), None if columns is None else columns.contiguous()
    of_rows = kernels.inverse_norms(x, lengths, normalize)
    of_columns = of_rows if y is None else kernels.inverse_norms(y, lengths, normalize)
    backend = registry.pick(OP, kernels.problem(x, y, lengths, pairs))
    with torch.autocast(rows.device.type, enabled=False):  # sums are never in half precision
        prefixes = Prefixes(lengths, of_rows, of_columns)
        kept = new_kept(rows, keep)
        found = backend.forward(x, y, scale, prefixes, pairs, column_lse, *_for(backend, kept))
    return *found, kept, of_rows, of_rows.new_empty(0) if y is None else of_columns


@_matryoshka_softmax.register_fake
def _(
    rows: Tensor,
    columns: Tensor | None,
    scale: Tensor,
    dims: Sequence[int],
    pairing: Sequence[int],
    normalize: bool,
    column_lse: bool,
    keep: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    lse = rows.new_empty(len(dims), rows.shape[0], dtype=statistics_dtype(rows))
    n = (rows if columns is None else columns).shape[0]
    of_columns = lse.new_empty(0) if columns is None else lse.new_empty(len(dims), n)
    lse_columns = lse.new_empty((len(dims), n) if column_lse else (0,))
    kept = rows.new_empty(keep, dtype=torch.float32)
    return lse, torch.empty_like(lse), lse_columns, kept, torch.empty_like(lse), of_columns


def _end(u: Tensor, x: Tensor, prefixes: Prefixes, norms: Tensor, inner: Tensor) -> Tensor:
    """U without the parts along the rows, of every prefix; in place."""
    along = (norms.square() * inner).to(u.dtype).flip(0).cumsum(0).flip(0)
    for features, share in zip(prefixes.features, along, strict=True):
        u[:, features].addcmul_(share[:, None], x[:, features].to(u.dtype), value=-1)
    return u


@torch.library.custom_op(f"{NAMESPACE}::matryoshka_softmax_backward", mutates_args=())
def _matryoshka_softmax_backward(
    d_lse: Tensor | None,
    d_positive: Tensor,
    d_column_lse: Tensor | None,
    rows: Tensor,
    columns: Tensor | None,
    scale: Tensor,
    lse: Tensor | None,
    lse_columns: Tensor | None,
    row_inverse: Tensor,
    column_inverse: Tensor | None,
    dims: Sequence[int],
    pairing: Sequence[int],
    normalize: bool,
    columns_gradient: bool,
    kept: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of rows, columns (empty where not asked for) and scale; recomputes the tiles."""
    pairs, lengths = Pairing.of(pairing), tuple(dims)
    x, y = rows.contiguous(), None if columns is None else columns.contiguous()
    backend = registry.pick(OP, kernels.problem(x, y, lengths, pairs))
    of_columns = row_inverse if column_inverse is None else column_inverse
    prefixes = Prefixes(lengths, row_inverse, of_columns)
    row = None if lse is None or d_lse is None else (lse, d_lse)
    column = None if lse_columns is None or d_column_lse is None else (lse_columns, d_column_lse)
    share = 1.0
    if y is None:
        assert row is not None
        # Row i is also a column: with that role come its share of G and its positive, and every
        # similarity is counted from both its ends.
        row = column = row[0], row[1] if d_column_lse is None else row[1] + d_column_lse
        d_positive = d_positive + d_positive.roll(pairs.shift, 1)
        share = 0.5
    with torch.autocast(rows.device.type, enabled=False):
        u, v, inner, *rest = backend.backward(
            *(x, y, scale, prefixes, pairs, row, column, d_positive, columns_gradient),
            *_for(backend, kept),
        )
        d_scale = (share * inner.sum()).to(scale.dtype)
        if normalize:
            u = _end(u, x, prefixes, prefixes.rows, inner)
            if columns_gradient and y is not None:
                v = _end(v, y, prefixes, prefixes.columns, rest[0])
        return u.mul_(scale).to(rows.dtype), v.mul_(scale).to(rows.dtype), d_scale


@_matryoshka_softmax_backward.register_fake
def _(
    d_lse: Tensor | None,
    d_positive: Tensor,
    d_column_lse: Tensor | None,
    rows: Tensor,
    columns: Tensor | None,
    scale: Tensor,
    lse: Tensor | None,
    lse_columns: Tensor | None,
    row_inverse: Tensor,
    column_inverse: Tensor | None,
    dims: Sequence[int],
    pairing: Sequence[int],
    normalize: bool,
    columns_gradient: bool,
    kept: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    dy = rows.new_empty(0 if columns is None or not columns_gradient else columns.shape)
    return rows.new_empty(rows.shape), dy, torch.empty_like(scale)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    rows, columns, scale, ctx.dims, ctx.pairing, ctx.normalize, ctx.column_lse, _ = inputs
    lse, _, lse_columns, *for_backward = output
    ctx.mark_non_differentiable(*for_backward)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(rows, columns, scale, lse, lse_columns, *for_backward)


def _backward(
    ctx: Any, d_lse: Tensor | None, d_positive: Tensor | None, d_column_lse: Tensor | None, *_: None
) -> tuple[Tensor | None, ...]:
    rows, columns, scale, lse, lse_columns, kept, *inverse = ctx.saved_tensors
    row_inverse, column_inverse = inverse

    def given(d: Tensor | None, like: Tensor) -> Tensor:
        return torch.zeros_like(like) if d is None else d.contiguous()

    d_columns = given(d_column_lse, lse_columns) if ctx.column_lse else None
    upstream = given(d_lse, lse), given(d_positive, lse), d_columns
    lse_columns = lse_columns if ctx.column_lse else None
    rows_gradient, columns_gradient, scale_gradient, *_ = ctx.needs_input_grad
    pairs, rest = Pairing.of(ctx.pairing), (ctx.normalize,)
    if columns_gradient and not rows_gradient:
        # The columns are the rows of the transposed problem; nothing is spent on the others.
        dy, _, d_scale = _matryoshka_softmax_backward(
            *(upstream[2], upstream[1].roll(pairs.shift, 1), upstream[0]),
            *(columns, rows, scale, lse_columns, lse, column_inverse, row_inverse),
            *(ctx.dims, pairs.transposed().numbers, *rest, False),
        )
        return None, dy, d_scale if scale_gradient else None, *[None] * 5
    dx, dy, d_scale = _matryoshka_softmax_backward(
        *upstream,
        *(rows, columns, scale, lse, lse_columns, row_inverse),
        *(None if columns is None else column_inverse, ctx.dims, ctx.pairing, *rest),
        columns_gradient,
        kept,
    )
    wanted = dy if columns_gradient else None, d_scale if scale_gradient else None
    return dx, *wanted, *[None] * 5


_matryoshka_softmax.register_autograd(_backward, setup_context=_setup_context)
_matryoshka_softmax_backward.register_autograd(no_double_backward)
