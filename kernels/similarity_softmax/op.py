"""The similarity-softmax op: torch.library schema, fake, autograd -> a backend of the registry.

Logits are t_ij = scale <x_i, y_j>. The op returns, for every row, the log-sum-exp over its
negatives and the logit of its positive; a loss is a few operations on these M-vectors, and the
upstream gradient reaches the kernels per row. The maths is in kernels/similarity_softmax, and what
surrounds it, the division by the norms and the end of the gradient, in kernels/unit_rows.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sslfast.kernels import registry, unit_rows
from sslfast.kernels import similarity_softmax as kernels
from sslfast.kernels.dtypes import accumulation_dtype, statistics_dtype
from sslfast.kernels.library import NAMESPACE, no_double_backward
from sslfast.kernels.similarity_softmax import Pairing
from sslfast.kernels.unit_rows import Positives

OP = "similarity_softmax"


def _unit(x: Tensor, normalize: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Rows for the kernels; and where they are divided by their norms, what backward needs again.

    Returns:
        Contiguous rows, and these rows and their norms, or two empty tensors.
    """
    x = x.contiguous()
    if not normalize:
        return x, *_nothing(x)
    z, norms = registry.pick("unit_rows", unit_rows.problem(x)).normalize(x)
    return z, z, norms


def _nothing(like: Tensor) -> tuple[Tensor, Tensor]:
    """Stand for rows and norms that are not there."""
    return like.new_empty(0), like.new_empty(0, dtype=accumulation_dtype(like.dtype))


def _finish(
    parts: Tensor,
    z: Tensor,
    norms: Tensor | None,
    scale: Tensor,
    positives: Positives | None,
    share: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradient of the rows as given, and the inner product; see kernels/unit_rows."""
    backend = registry.pick("unit_rows", unit_rows.problem(z))
    return backend.gradient(parts, z, norms, scale, positives, share)


def _for(backend: Any, kept: Tensor | None) -> tuple[Tensor | None, ...]:
    """The last argument of a backend that keeps logits; nothing for the others."""
    return (kept,) if backend.FEATURES.keeps_logits else ()


def similarity_softmax(
    rows: Tensor,
    columns: Tensor | None,
    scale: Tensor,
    pairing: Pairing | None,
    *,
    normalize: bool = False,
    column_lse: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Row-wise log-sum-exp over negatives and positive logits.

    Args:
        rows: X [M, D], float16, bfloat16, float32 or float64.
        columns: Y [N, D] of the same dtype and device, or None for the symmetric form Y = X.
        scale: 1 / temperature, a 0-d tensor of the accumulation dtype (float32, or float64 for
            float64 rows) on the same device; may need a gradient.
        pairing: which columns are positives, of all rows, and which are no candidates; None: all
            columns are negatives. In the symmetric form its shift is M / 2.
        normalize: divide rows and columns by their Euclidean norms first, as F.normalize does.
        column_lse: also return the log-sum-exps of the columns.

    Returns:
        lse [M], positive [M] and column lse [N] (or [0]) in the statistics dtype, in nats: float64
        on a CPU, elsewhere that of the scale.
    """
    # Where the columns alone need a gradient, the backward pass goes over other tiles than this.
    needed = rows.requires_grad and torch.is_grad_enabled()
    keep = kernels.kept_size(rows, columns) if needed else 0
    pairs = None if pairing is None else pairing.numbers
    lse, positive, lse_columns, *_ = _similarity_softmax(
        rows, columns, scale, pairs, normalize, column_lse, keep
    )
    return lse, positive, lse_columns


Forward = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


@torch.library.custom_op(f"{NAMESPACE}::similarity_softmax", mutates_args=())
def _similarity_softmax(
    rows: Tensor,
    columns: Tensor | None,
    scale: Tensor,
    pairing: Sequence[int] | None,
    normalize: bool,
    column_lse: bool,
    keep: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The op behind it: three results for people, and five for the backward pass.

    Memory for logits, ``keep`` floats (see the kernels); then rows and columns as they were
    multiplied, each before its norms: empty where they were taken as given.
    """
    pairs = Pairing.of(pairing)
    x, *of_rows = _unit(rows, normalize)
    y, *of_columns = (None, *_nothing(x)) if columns is None else _unit(columns, normalize)
    backend = registry.pick(OP, kernels.problem(x, y, pairs))
    kept = kernels.new_kept(rows, keep)
    with torch.autocast(rows.device.type, enabled=False):  # sums are never in half precision
        found = backend.forward(x, y, scale, pairs, column_lse, *_for(backend, kept))
    return *found, kept, *of_rows, *of_columns


@_similarity_softmax.register_fake
def _(
    rows: Tensor,
    columns: Tensor | None,
    scale: Tensor,
    pairing: Sequence[int] | None,
    normalize: bool,
    column_lse: bool,
    keep: int,
) -> tuple[Tensor, ...]:
    dtype = statistics_dtype(rows)
    n = (rows if columns is None else columns).shape[0] if column_lse else 0
    lse = rows.new_empty(rows.shape[0], dtype=dtype)
    kept = rows.new_empty(keep, dtype=torch.float32)

    def unit(x: Tensor | None) -> tuple[Tensor, Tensor]:
        if x is None or not normalize:
            return _nothing(rows)
        return x.new_empty(x.shape), x.new_empty(x.shape[0], dtype=accumulation_dtype(x.dtype))

    return (
        *(lse, torch.empty_like(lse), rows.new_empty(n, dtype=dtype), kept),
        *(*unit(rows), *unit(columns)),
    )


@torch.library.custom_op(f"{NAMESPACE}::similarity_softmax_backward", mutates_args=())
def similarity_softmax_backward(
    d_lse: Tensor | None,
    d_positive: Tensor,
    d_column_lse: Tensor | None,
    rows: Tensor,
    columns: Tensor | None,
    scale: Tensor,
    lse: Tensor | None,
    lse_columns: Tensor | None,
    pairing: Sequence[int] | None,
    columns_gradient: bool,
    scale_gradient: bool,
    kept: Tensor | None = None,
    row_norms: Tensor | None = None,
    column_norms: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of rows, columns and scale (empty where not asked for); recomputes the tiles.

    rows and columns are those that were multiplied. Their norms, where they have been divided by
    them: gradients then are those of the rows before that. lse and d_lse may be None for rows that
    have only the role of columns, but not in the symmetric form. kept: the memory of the forward
    pass of the same problem, or None.
    """
    pairs = Pairing.of(pairing)
    x, y = rows.contiguous(), None if columns is None else columns.contiguous()
    problem = kernels.problem(x, y, pairs)
    backend = registry.pick(OP, problem)
    memory = _for(backend, kept)
    nothing = rows.new_empty(0)
    with torch.autocast(rows.device.type, enabled=False):
        row = None if lse is None or d_lse is None else (lse, d_lse)
        if y is None:
            assert lse is not None
            assert d_lse is not None
            # Row i is also a column: with that role come its share of G and its positive, and
            # every similarity is counted from both its ends.
            row = (lse, d_lse if d_column_lse is None else d_lse + d_column_lse)
            u = _parts(backend, x, None, scale, pairs, row, row, *memory)
            positives = Positives(pairs, x, d_positive, d_positive)
            share = 0.5 if scale_gradient else None
            dx, d_scale = _finish(u, x, row_norms, scale, positives, share)
            return dx, nothing, d_scale
        share = 1.0 if scale_gradient else None
        column = None
        if lse_columns is not None and d_column_lse is not None:
            column = lse_columns, d_column_lse
        given = x, y, scale, pairs, row, column
        if columns_gradient and backend.FEATURES.one_pass(problem):
            u, v = (g[None] for g in backend.backward_both(*given, d_positive, *memory))
            dx, d_scale = _finish(u, x, row_norms, scale, None, share)
            return dx, _finish(v, y, column_norms, scale, None)[0], d_scale
        u = _parts(backend, *given, *(() if columns_gradient else memory))
        positives = Positives(pairs, y, d_positive, None)
        dx, d_scale = _finish(u, x, row_norms, scale, positives, share)
        if not columns_gradient:
            return dx, nothing, d_scale
        back = pairs.transposed()
        v = _parts(backend, y, x, scale, back, column, row)
        positives = Positives(back, x, None, d_positive)
        return dx, _finish(v, y, column_norms, scale, positives)[0], d_scale


def _parts(backend: Any, *problem: Any) -> Tensor:
    """Unscaled gradient [S, M, D], to be added up: one part where a backend has no more."""
    if backend.FEATURES.in_parts:
        return backend.backward_parts(*problem)
    return backend.backward(*problem)[None]


@similarity_softmax_backward.register_fake
def _(
    d_lse: Tensor | None,
    d_positive: Tensor,
    d_column_lse: Tensor | None,
    rows: Tensor,
    columns: Tensor | None,
    scale: Tensor,
    lse: Tensor | None,
    lse_columns: Tensor | None,
    pairing: Sequence[int] | None,
    columns_gradient: bool,
    scale_gradient: bool,
    kept: Tensor | None = None,
    row_norms: Tensor | None = None,
    column_norms: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    n = columns.shape[0] if columns is not None and columns_gradient else None
    dy = rows.new_empty(0) if n is None else rows.new_empty(n, rows.shape[1])
    return rows.new_empty(rows.shape), dy, scale.new_empty(() if scale_gradient else (0,))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Forward) -> None:
    rows, columns, scale, ctx.pairing, normalize, ctx.column_lse, _ = inputs
    lse, _, lse_columns, *for_backward = output
    kept, z, z_norms, y, y_norms = for_backward
    ctx.mark_non_differentiable(*for_backward)
    ctx.set_materialize_grads(False)  # zeros for kept would take as much memory again
    norms: tuple[Tensor | None, ...] = (None, None)
    if normalize:
        rows, columns, norms = z, None if columns is None else y, (z_norms, y_norms)
    ctx.save_for_backward(rows, columns, scale, lse, lse_columns, kept, *norms)


def _backward(
    ctx: Any, d_lse: Tensor | None, d_positive: Tensor | None, d_column_lse: Tensor | None, *_: None
) -> tuple[Tensor | None, ...]:
    *problem, kept, row_norms, column_norms = ctx.saved_tensors
    rows, columns, scale, lse, lse_columns = problem

    def given(d: Tensor | None, like: Tensor) -> Tensor:
        return torch.zeros_like(like) if d is None else d.contiguous()

    d_columns = given(d_column_lse, lse_columns) if ctx.column_lse else None
    rows_gradient, columns_gradient, scale_gradient, *_ = ctx.needs_input_grad
    if columns_gradient and not rows_gradient:
        # The columns are the rows of the transposed problem; nothing is spent on the others.
        pairs = Pairing.of(ctx.pairing)
        dy, _, d_scale = similarity_softmax_backward(
            d_columns,
            given(d_positive, lse).roll(pairs.shift),
            given(d_lse, lse),
            columns,
            rows,
            scale,
            lse_columns if ctx.column_lse else None,
            lse,
            pairs.transposed().numbers,
            columns_gradient=False,
            scale_gradient=scale_gradient,
            row_norms=column_norms,
            column_norms=row_norms,
        )
        return None, dy, d_scale if scale_gradient else None, *[None] * 4
    dx, dy, d_scale = similarity_softmax_backward(
        given(d_lse, lse),
        given(d_positive, lse),
        d_columns,
        *problem,
        ctx.pairing,
        columns_gradient,
        scale_gradient,
        kept,
        row_norms,
        column_norms,
    )
    return (
        dx,
        dy if columns_gradient else None,
        d_scale if scale_gradient else None,
        *[None] * 4,
    )


_similarity_softmax.register_autograd(_backward, setup_context=_setup_context)
similarity_softmax_backward.register_autograd(no_double_backward)
