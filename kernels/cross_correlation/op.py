"""Cross-correlation of two views' features: schema, fake, autograd -> a backend of the registry.

The maths is in kernels/cross_correlation.
"""

from typing import Any

import torch
from torch import Tensor

from sslfast.kernels import cross_correlation as kernels
from sslfast.kernels import registry
from sslfast.kernels.cross_correlation import Form
from sslfast.kernels.dtypes import accumulation_dtype
from sslfast.kernels.library import NAMESPACE, no_double_backward

OP = "cross_correlation"


def cross_correlation(
    x: Tensor, y: Tensor | None, standardize: bool, eps: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The diagonal of C = Xh' Yh / n, and the sum of squares off it.

    Args:
        x: features [N, D] of a view, float16, bfloat16, float32 or float64; N is 2 at least.
        y: those of the other view [N, D], of the same dtype; None: those of the same view.
        standardize: divide columns by the root of their biased variance + ``eps``, and n is N; else
            columns are only centered, and n is N - 1.
        eps: see above.

    Returns:
        The diagonal [D], and the sum of squares, 0-d, in the accumulation dtype.
    """
    return _cross_correlation(x, y, standardize, eps)[:2]


def _views(
    x: Tensor, y: Tensor | None, standardize: bool
) -> tuple[Tensor, Tensor | None, Any, torch.dtype]:
    x, y = x.contiguous(), None if y is None else y.contiguous()
    dtype = kernels.computed_in(x, y, standardize)
    widened = dtype != accumulation_dtype(x.dtype)
    if widened:
        x = x.to(dtype)
    return x, y, registry.pick(OP, kernels.problem(x, y), told=not widened), dtype


@torch.library.custom_op(f"{NAMESPACE}::cross_correlation", mutates_args=())
def _cross_correlation(
    x: Tensor, y: Tensor | None, standardize: bool, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same, and what the backward pass needs: scaling [V, 2, D] and kept."""
    results = accumulation_dtype(x.dtype)
    x, y, backend, dtype = _views(x, y, standardize)
    form = Form(len(x), standardize, eps)
    with torch.autocast(x.device.type, enabled=False):  # sums are never in half precision
        scaling = form.scaling(*(backend.moments(v) for v in (x, y) if v is not None))
        kept = kernels.new_kept(x, y, dtype)
        diagonal, off_diagonal = backend.forward(x, y, scaling, form, kept)
    return diagonal.to(results), off_diagonal.to(results), scaling, kept


@_cross_correlation.register_fake
def _(
    x: Tensor, y: Tensor | None, standardize: bool, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype, dim = accumulation_dtype(x.dtype), x.shape[1]
    diagonal, off_diagonal = (x.new_empty(shape, dtype=dtype) for shape in ((dim,), ()))
    inner = kernels.computed_in(x, y, standardize)
    scaling = x.new_empty((1 if y is None else 2, 2, dim), dtype=inner)
    return diagonal, off_diagonal, scaling, kernels.new_kept(x, y, inner)


@torch.library.custom_op(f"{NAMESPACE}::cross_correlation_backward", mutates_args=())
def _cross_correlation_backward(
    d_diagonal: Tensor,
    d_off_diagonal: Tensor,
    x: Tensor,
    y: Tensor | None,
    standardize: bool,
    eps: float,
    diagonal: Tensor,
    scaling: Tensor,
    kept: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradients of x and y (empty where y is None)."""
    given = x.dtype
    x, y, backend, dtype = _views(x, y, standardize)
    form = Form(len(x), standardize, eps)
    with torch.autocast(x.device.type, enabled=False):
        if dtype != diagonal.dtype:  # variances, once more with all their digits
            diagonal = backend.moments(x)[1] * (form.rows / form.divisor)
        d_diagonal, d_off_diagonal = d_diagonal.contiguous().to(dtype), d_off_diagonal.to(dtype)
        dx, dy = backend.backward(d_diagonal, d_off_diagonal, x, y, scaling, form, diagonal, kept)
    return dx.to(given), dy if y is not None else dy.to(given)


@_cross_correlation_backward.register_fake
def _(
    d_diagonal: Tensor, d_off_diagonal: Tensor, x: Tensor, y: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty((0,) if y is None else y.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, y, *ctx.form = inputs
    diagonal, _, scaling, kept = output
    ctx.save_for_backward(x, y, diagonal, scaling, kept)
    ctx.mark_non_differentiable(scaling, kept)


def _backward(
    ctx: Any, d_diagonal: Tensor, d_off_diagonal: Tensor, *_: None
) -> tuple[Tensor | None, ...]:
    x, y, *saved = ctx.saved_tensors
    dx, dy = _cross_correlation_backward(d_diagonal, d_off_diagonal, x, y, *ctx.form, *saved)
    return dx, None if y is None else dy, None, None


_cross_correlation.register_autograd(_backward, setup_context=_setup_context)
_cross_correlation_backward.register_autograd(no_double_backward)
