"""Torch only, any device: in place where that is possible, so that little is read twice."""

import torch
from torch import Tensor

from sslfast.kernels.dtypes import accumulation_dtype
from sslfast.kernels.unit_rows import EPS, Positives

DEVICE = "any"
PRIORITY = 10

CACHED_ROWS = 512  # rows of a CPU whose products never leave the cache


def normalize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Unit rows and norms; see the package."""
    dtype = accumulation_dtype(x.dtype)
    norms = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=dtype).clamp_min_(EPS)
    return torch.div(x, norms, out=x.new_empty(x.shape)), norms.squeeze(1)  # rounded as written


def gradient(
    parts: Tensor,
    z: Tensor,
    norms: Tensor | None,
    scale: Tensor,
    positives: Positives | None,
    share: float | None,
) -> tuple[Tensor, Tensor]:
    """Gradient of the rows before their normalisation; see the package."""
    v = parts[0] if len(parts) == 1 else parts.sum(0)
    if positives is not None:
        _add(v, positives)
    inner = v.new_empty(0) if share is None else _inner_product(z, v).mul_(share)
    if norms is None:
        return v.mul_(scale).to(z.dtype), inner
    along = (z * v).sum(1)
    factor = (scale / norms).masked_fill_(norms <= EPS, 0)
    v.addcmul_(along[:, None], z.to(v.dtype), value=-1).mul_(factor[:, None])
    return v.to(z.dtype), inner


def _add(v: Tensor, positives: Positives) -> None:
    """What the pairs add, in place: one piece before the window of pairs wraps, one after."""
    p, other, own, partner = (
        positives.pairing,
        positives.other,
        positives.own,
        positives.partner,
    )
    wrap = p.length - p.shift
    for a, b, count in ((0, p.shift, wrap), (wrap, 0, p.shift)):
        weights = [
            side[first : first + count]
            for side, first in ((own, a), (partner, b))
            if side is not None
        ]
        if count and weights:
            weight = sum(weights[1:], weights[0])[:, None].to(v.dtype)
            to = p.column_base + b
            v[p.row_base + a :][:count].addcmul_(weight, other[to : to + count].to(v.dtype))


def _inner_product(x: Tensor, y: Tensor) -> Tensor:
    """sum_i <x_i, y_i> in the dtype of y; on a CPU its products never leave the cache."""
    rows = len(x) if x.is_cuda else CACHED_ROWS
    parts = zip(x.split(rows), y.split(rows), strict=True)
    return torch.stack([torch.linalg.vecdot(a.to(y.dtype), b).sum() for a, b in parts]).sum()
