"""The similarity-softmax op: torch.library schema, fake, autograd -> a backend of the registry.

Logits are t_ij = scale <x_i, y_j>. The op returns, for every row, the log-sum-exp over its
negatives and the logit of its positive; a loss is a few operations on these M-vectors, and the
upstream gradient reaches the kernels per row. The maths is in kernels/similarity_softmax.
"""

from typing import Any

import torch
from torch import Tensor

from sslfast.kernels import registry
from sslfast.kernels import similarity_softmax as kernels
from sslfast.kernels.similarity_softmax import Pairing, accumulation_dtype, statistics_dtype

from ._gradients import no_double_backward

OP = "similarity_softmax"
EPS = 1e-12  # of torch.nn.functional.normalize; in the accumulation dtype, so fp16 has no NaN


def _pairing(rows: Tensor, shift: int, column_base: int, leave_out_self: bool) -> Pairing:
    length = rows.shape[0]
    return Pairing(0) if shift < 0 else Pairing(length, shift, 0, column_base, leave_out_self)


def _norms(x: Tensor) -> Tensor:
    """max(||x_i||, EPS) [M, 1] in the accumulation dtype."""
    norms = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=accumulation_dtype(x.dtype))
    return norms.clamp_min_(EPS)


def _prepare(x: Tensor, normalize: bool) -> tuple[Tensor, Tensor | None]:
    """Contiguous rows in their own dtype, divided by their norms where asked; the norms."""
    if not normalize:
        return x.contiguous(), None
    norms = _norms(x)
    return (x / norms).to(x.dtype).contiguous(), norms


def _finish(x: Tensor, z: Tensor, norms: Tensor | None, gradient: Tensor, scale: Tensor) -> Tensor:
    """Gradient of the rows x as given, from the unscaled one of the prepared rows z, in place.

    Through z = x / max(||x||, EPS): a row shorter than EPS is only scaled.
    """
    if norms is None:
        return gradient.mul_(scale).to(x.dtype)
    along = (z * gradient).sum(1, keepdim=True).masked_fill_(norms <= EPS, 0)
    return gradient.addcmul_(along, z.to(gradient.dtype), value=-1).mul_(scale / norms).to(x.dtype)


def _inner_product(x: Tensor, y: Tensor) -> Tensor:
    """sum_i <x_i, y_i> in the dtype of y; on a CPU its products never leave the cache."""
    rows = len(x) if x.is_cuda else 512
    parts = zip(x.split(rows), y.split(rows), strict=True)
    return torch.stack([torch.linalg.vecdot(a.to(y.dtype), b).sum() for a, b in parts]).sum()


def _for(backend: Any, kept: Tensor | None) -> tuple[Tensor | None, ...]:
    """The last argument of a backend that keeps logits; nothing for the others."""
    return (kept,) if getattr(backend, "KEEPS", False) else ()


def similarity_softmax(
    rows: Tensor,
    columns: Tensor | None,
    scale: Tensor,
    shift: int,
    column_base: int,
    leave_out_self: bool,
    normalize: bool,
    column_lse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Row-wise log-sum-exp over negatives and positive logits.

    Args:
        rows: X [M, D], float16, bfloat16, float32 or float64.
        columns: Y [N, D] of the same dtype and device, or None for the symmetric form Y = X.
        scale: 1 / temperature, a 0-d tensor of the accumulation dtype (float32, or float64 for
            float64 rows) on the same device; may need a gradient.
        shift: the positive of row i is column ``column_base + (i + shift) % M``; symmetric: M / 2.
            -1: no column is a positive.
        column_base: the column where the rows' own block begins.
        leave_out_self: column ``column_base + i`` is no candidate of row i.
        normalize: divide rows and columns by their Euclidean norms first, as F.normalize does.
        column_lse: also return the log-sum-exps of the columns.

    Returns:
        lse [M], positive [M] and column lse [N] (or [0]) in the statistics dtype, in nats: float64
        on a CPU, elsewhere that of the scale.
    """
    needed = rows.requires_grad or (columns is not None and columns.requires_grad)
    keep = kernels.kept_size(rows, columns) if needed and torch.is_grad_enabled() else 0
    lse, positive, lse_columns, _ = _similarity_softmax(
        rows, columns, scale, shift, column_base, leave_out_self, normalize, column_lse, keep
    )
    return lse, positive, lse_columns


@torch.library.custom_op("sslfast::similarity_softmax", mutates_args=())
def _similarity_softmax(
    rows: Tensor,
    columns: Tensor | None,
    scale: Tensor,
    shift: int,
    column_base: int,
    leave_out_self: bool,
    normalize: bool,
    column_lse: bool,
    keep: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The op behind it. The last result is memory for logits, ``keep`` floats: see the kernels."""
    pairing = _pairing(rows, shift, column_base, leave_out_self)
    x, _ = _prepare(rows, normalize)
    y = None if columns is None else _prepare(columns, normalize)[0]
    backend = registry.pick(OP, kernels.problem(x, y, pairing))
    kept = kernels.new_kept(rows, keep)
    with torch.autocast(rows.device.type, enabled=False):  # sums are never in half precision
        return *backend.forward(x, y, scale, pairing, column_lse, *_for(backend, kept)), kept


@_similarity_softmax.register_fake
def _(
    rows: Tensor,
    columns: Tensor | None,
    scale: Tensor,
    shift: int,
    column_base: int,
    leave_out_self: bool,
    normalize: bool,
    column_lse: bool,
    keep: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = statistics_dtype(rows)
    n = (rows if columns is None else columns).shape[0] if column_lse else 0
    lse = rows.new_empty(rows.shape[0], dtype=dtype)
    kept = rows.new_empty(keep, dtype=torch.float32)
    return lse, torch.empty_like(lse), rows.new_empty(n, dtype=dtype), kept


@torch.library.custom_op("sslfast::similarity_softmax_backward", mutates_args=())
def similarity_softmax_backward(
    d_lse: Tensor | None,
    d_positive: Tensor,
    d_column_lse: Tensor | None,
    rows: Tensor,
    columns: Tensor | None,
    scale: Tensor,
    lse: Tensor | None,
    lse_columns: Tensor,
    shift: int,
    column_base: int,
    leave_out_self: bool,
    normalize: bool,
    columns_gradient: bool,
    kept: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of rows, columns (empty where not asked for) and scale; recomputes the tiles.

    lse and d_lse may be None for rows that have only the role of columns, but not in the symmetric
    form. kept: the memory of the forward pass of the same problem, or None.
    """
    pairing = _pairing(rows, shift, column_base, leave_out_self)
    x, x_norms = _prepare(rows, normalize)
    y, y_norms = (None, None) if columns is None else _prepare(columns, normalize)
    backend = registry.pick(OP, kernels.problem(x, y, pairing))
    with torch.autocast(rows.device.type, enabled=False):
        row = None if lse is None or d_lse is None else (lse, d_lse)
        column: tuple[Tensor, Tensor] | None
        if y is None:
            assert lse is not None
            assert d_lse is not None
            # Row i is also a column: with that role come its share of G and its positive.
            row = column = (lse, d_lse if d_column_lse is None else d_lse + d_column_lse)
            d_positive = d_positive + d_positive.roll(pairing.shift)
        else:
            column = None if d_column_lse is None else (lse_columns, d_column_lse)
        dy = None
        if y is not None and columns_gradient:
            dx, dy = _both_gradients(backend, x, y, scale, pairing, row, column, d_positive, kept)
        else:
            dx = backend.backward(x, y, scale, pairing, row, column, *_for(backend, kept))
            kernels.add_positives(dx, x if y is None else y, d_positive, pairing)
        d_scale = _inner_product(x, dx)
        if y is None:
            d_scale /= 2  # every similarity has been counted from both its ends
        if columns is None or y is None or dy is None:
            d_columns = rows.new_empty(0)
        else:
            d_columns = _finish(columns, y, y_norms, dy, scale)
        return _finish(rows, x, x_norms, dx, scale), d_columns, d_scale


def _both_gradients(
    backend: Any,
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    pairing: Pairing,
    row: tuple[Tensor, Tensor] | None,
    column: tuple[Tensor, Tensor] | None,
    d_positive: Tensor,
    kept: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """In one pass where the backend has one, else by the transposed problem."""
    if kernels.in_one_pass(backend, kernels.problem(x, y, pairing)):
        memory = _for(backend, kept)
        return backend.backward_both(x, y, scale, pairing, row, column, d_positive, *memory)
    back = pairing.transposed()
    dx = backend.backward(x, y, scale, pairing, row, column)
    dy = backend.backward(y, x, scale, back, column, row)
    kernels.add_positives(dx, y, d_positive, pairing)
    kernels.add_positives(dy, x, d_positive.roll(pairing.shift), back)
    return dx, dy


@similarity_softmax_backward.register_fake
def _(
    d_lse: Tensor | None,
    d_positive: Tensor,
    d_column_lse: Tensor | None,
    rows: Tensor,
    columns: Tensor | None,
    scale: Tensor,
    lse: Tensor | None,
    lse_columns: Tensor,
    shift: int,
    column_base: int,
    leave_out_self: bool,
    normalize: bool,
    columns_gradient: bool,
    kept: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    n = columns.shape[0] if columns is not None and columns_gradient else None
    dy = rows.new_empty(0) if n is None else rows.new_empty(n, rows.shape[1])
    return rows.new_empty(rows.shape), dy, torch.empty_like(scale)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    rows, columns, scale, *ctx.structure, ctx.column_lse, _ = inputs
    lse, _, lse_columns, kept = output
    ctx.mark_non_differentiable(kept)
    ctx.set_materialize_grads(False)  # zeros for kept would take as much memory again
    ctx.save_for_backward(rows, columns, scale, lse, lse_columns, kept)


def _backward(
    ctx: Any, d_lse: Tensor | None, d_positive: Tensor | None, d_column_lse: Tensor | None, _: None
) -> tuple[Tensor | None, ...]:
    rows, columns, scale, lse, lse_columns, kept = ctx.saved_tensors

    def given(d: Tensor | None, like: Tensor) -> Tensor:
        return torch.zeros_like(like) if d is None else d.contiguous()

    d_columns = given(d_column_lse, lse_columns) if ctx.column_lse else None
    columns_gradient = columns is not None and ctx.needs_input_grad[1]
    dx, dy, d_scale = similarity_softmax_backward(
        given(d_lse, lse),
        given(d_positive, lse),
        d_columns,
        rows,
        columns,
        scale,
        lse,
        lse_columns,
        *ctx.structure,
        columns_gradient,
        kept,
    )
    return dx, dy if columns_gradient else None, d_scale, *[None] * 6


_similarity_softmax.register_autograd(_backward, setup_context=_setup_context)
similarity_softmax_backward.register_autograd(no_double_backward)
