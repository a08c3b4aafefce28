"""The oracle: the definition, written down with all scores in memory."""

import torch
from torch import Tensor

from sslfast.kernels.dtypes import accumulation_dtype
from sslfast.kernels.prototype_cross_entropy import Results, Side, Wants

DEVICE = "any"
PRIORITY = 0


def _log_softmax(side: Side, dtype: torch.dtype) -> Tensor:
    scores = side.scale * (side.rows.to(dtype) @ side.weight.to(dtype).T)
    return (scores if side.bias is None else scores + side.bias[:, None]).log_softmax(-1)


def losses(
    student: Side, teacher: Side, pairs: Tensor, row_weight: Tensor | None, wants: Wants
) -> Results:
    """Losses, entropies, usage and gradients; see the package."""
    dtype = accumulation_dtype(student.rows.dtype)
    log_p, log_q = _log_softmax(student, dtype), _log_softmax(teacher, dtype)
    q = log_q.exp()
    target = torch.einsum("st,tgk->sgk", pairs, q)
    loss, entropy = -(target * log_p).sum(-1), -(q * log_q).sum(-1)
    usage = q.sum((0, 1)) / max(entropy.numel(), 1)
    d_rows = d_weight = loss.new_empty(0)
    if row_weight is not None:
        share = target.sum(-1, keepdim=True) * log_p.exp()
        g = row_weight[..., None] * student.scale * (share - target)
        if wants.rows:
            d_rows = g @ student.weight.to(dtype)
        if wants.weight:
            d_weight = g.flatten(0, 1).T @ student.rows.to(dtype).flatten(0, 1)
    return loss, entropy, usage, d_rows, d_weight
