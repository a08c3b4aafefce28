"""The oracle: the formulas, with indices for the pairs."""

import torch
from torch import Tensor

from sslfast.kernels.dtypes import accumulation_dtype
from sslfast.kernels.unit_rows import EPS, Positives

DEVICE = "any"
PRIORITY = 0


def normalize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Unit rows and norms; see the package."""
    wide = x.to(accumulation_dtype(x.dtype))
    norms = wide.square().sum(1).sqrt().clamp_min(EPS)
    return (wide / norms[:, None]).to(x.dtype), norms


def gradient(
    parts: Tensor,
    z: Tensor,
    norms: Tensor | None,
    scale: Tensor,
    positives: Positives | None,
    share: float | None,
) -> tuple[Tensor, Tensor]:
    """Gradient of the rows before their normalisation; see the package."""
    v, wide = parts.sum(0), z.to(parts.dtype)
    if positives is not None:
        p = positives.pairing
        a = torch.arange(p.length, device=z.device)
        b = (a + p.shift) % max(p.length, 1)
        weight = v.new_zeros(p.length)
        weight = weight if positives.own is None else weight + positives.own[a]
        weight = weight if positives.partner is None else weight + positives.partner[b]
        others = positives.other[p.column_base + b].to(v.dtype)
        v = v.index_add(0, p.row_base + a, weight.to(v.dtype)[:, None] * others)
    along = (wide * v).sum(1)
    inner = v.new_empty(0) if share is None else share * along.sum()
    if norms is None:
        return (scale * v).to(z.dtype), inner
    dx = scale / norms[:, None] * (v - wide * along[:, None])
    return dx.masked_fill((norms <= EPS)[:, None], 0).to(z.dtype), inner
