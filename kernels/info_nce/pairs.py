"""Queries as the loss takes them, and the logits of their positive keys: schema, fake, autograd.

For 16-bit vectors, in a few passes of the accumulation dtype that round once, as they write. What
is kept for the backward pass is the vectors as they were given and three numbers a row: no copies
in float32.
"""

from typing import Any

import torch
from torch import Tensor

from sslfast.kernels.dtypes import accumulation_dtype
from sslfast.kernels.library import NAMESPACE, no_double_backward
from sslfast.kernels.unit_rows import EPS
from sslfast.kernels.unit_rows.op import wide_unit_rows


def scaled_pairs(query: Tensor, key: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Unit queries times the scale, and the scale times the cosines of queries and keys.

    Args:
        query: [N, D], float16, bfloat16, float32 or float64.
        key: [N, D] of the same dtype.
        scale: 0-d, in the accumulation dtype.

    Returns:
        [N, D] in the dtype of query, [N] in the accumulation dtype.
    """
    dtype = accumulation_dtype(query.dtype)
    if query.is_cuda and query.dtype != dtype:
        return _scaled_pairs(query, key, scale)[:2]
    q, k = (wide_unit_rows(x) for x in (query, key))
    return (scale * q).to(query.dtype), scale * (q * k).sum(1)


def _norms(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=1, dtype=torch.float32).clamp_min_(EPS)


@torch.library.custom_op(f"{NAMESPACE}::scaled_pairs", mutates_args=())
def _scaled_pairs(
    query: Tensor, key: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Rows and logits of 16-bit vectors; the cosines and both norms [N] in float32."""
    with torch.autocast(query.device.type, enabled=False):
        q, k = _norms(query), _norms(key)
        rows = torch.mul(query, (scale / q).unsqueeze(1), out=query.new_empty(query.shape))
        cosine = query.to(torch.float32, copy=True).mul_(key).sum(1).div_(q * k)
        return rows, scale * cosine, cosine, q, k


@_scaled_pairs.register_fake
def _(query: Tensor, key: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    positive, cosine, q, k = (
        query.new_empty(query.shape[0], dtype=torch.float32) for _ in range(4)
    )
    return query.new_empty(query.shape), positive, cosine, q, k


@torch.library.custom_op(f"{NAMESPACE}::scaled_pairs_backward", mutates_args=())
def _scaled_pairs_backward(
    d_rows: Tensor,
    d_positive: Tensor,
    query: Tensor,
    key: Tensor,
    scale: Tensor,
    cosine: Tensor,
    q: Tensor,
    k: Tensor,
    key_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key (empty where not asked for) and scale.

    With u and v the unit vectors, g and p the upstream gradients of rows and logits, h = g + p v:
    d_query = s / |query| (h - u <u, h>), d_key = s p / |key| (u - v <u, v>), d_s = sum <u, h>.
    The gradient of a vector no longer than EPS is 0.
    """
    with torch.autocast(query.device.type, enabled=False):
        unit = query / q.unsqueeze(1)
        along = (unit * d_rows).sum(1) + d_positive * cosine
        d_key = query.new_empty(0)
        if key_gradient:
            back = (cosine / k).masked_fill(k <= EPS, 0)
            d_unit = torch.addcmul(unit, back.unsqueeze(1), key, value=-1)
            share = (scale * d_positive / k).masked_fill(k <= EPS, 0)
            d_key = torch.mul(d_unit, share.unsqueeze(1), out=key.new_empty(key.shape))
        h = torch.addcmul(d_rows, (d_positive / k).unsqueeze(1), key)
        h.addcmul_(along.masked_fill(q <= EPS, 0).unsqueeze(1), unit, value=-1)
        share = (scale / q).masked_fill(q <= EPS, 0)
        d_query = torch.mul(h, share.unsqueeze(1), out=query.new_empty(query.shape))
        return d_query, d_key, along.sum()


@_scaled_pairs_backward.register_fake
def _(
    d_rows: Tensor,
    d_positive: Tensor,
    query: Tensor,
    key: Tensor,
    scale: Tensor,
    cosine: Tensor,
    q: Tensor,
    k: Tensor,
    key_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    d_key = key.new_empty(key.shape if key_gradient else (0,))
    return query.new_empty(query.shape), d_key, torch.empty_like(scale)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, *output[2:])
    ctx.mark_non_differentiable(*output[2:])


def _backward(ctx: Any, d_rows: Tensor, d_positive: Tensor, *_: None) -> tuple[Tensor | None, ...]:
    key_gradient = ctx.needs_input_grad[1]
    d_query, d_key, d_scale = _scaled_pairs_backward(
        d_rows, d_positive, *ctx.saved_tensors, key_gradient
    )
    return d_query, d_key if key_gradient else None, d_scale


_scaled_pairs.register_autograd(_backward, setup_context=_setup_context)
_scaled_pairs_backward.register_autograd(no_double_backward)
