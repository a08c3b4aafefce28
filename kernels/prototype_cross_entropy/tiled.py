"""Torch only, any device: a block of samples meets all prototypes, and leaves its gradients behind.

2 (3 S + T) G K D FLOP with gradients; extra memory: the scores of a block's rows, and as much again
of one view for its targets.
"""

import torch
from torch import Tensor

from sslfast.kernels.dtypes import accumulation_dtype
from sslfast.kernels.prototype_cross_entropy import Results, Side, Wants

DEVICE = "any"
PRIORITY = 10

BLOCK_ELEMENTS = 1 << 24


def losses(
    student: Side, teacher: Side, pairs: Tensor, row_weight: Tensor | None, wants: Wants
) -> Results:
    """Losses, entropies, usage and gradients; see the package."""
    dtype = accumulation_dtype(student.rows.dtype)
    x, w, y, v = (t.to(dtype) for t in (student.rows, student.weight, teacher.rows, teacher.weight))
    views, samples, _ = x.shape
    loss, entropy = x.new_empty(views, samples), x.new_empty(len(y), samples)
    usage = x.new_zeros(len(w))
    wants = wants if row_weight is not None else Wants(rows=False, weight=False)
    d_rows = torch.empty_like(x) if wants.rows else x.new_empty(0)
    d_weight = torch.zeros_like(w) if wants.weight else x.new_empty(0)
    shares = pairs.sum(1)
    step = max(BLOCK_ELEMENTS // (len(w) * max(views + len(y), 1)), 1)
    for first in range(0, samples, step):
        block = slice(first, first + step)
        scores = (y[:, block] @ v.T).mul_(teacher.scale)
        if teacher.bias is not None:
            scores += teacher.bias[:, None]
        entropy[:, block] = total = _shift(scores)
        q = scores.exp().div_(total.exp()[..., None])
        entropy[:, block] -= (q * scores).sum(-1)
        usage += q.sum((0, 1))

        rows = x[:, block].flatten(0, 1)
        scores = (rows @ w.T).mul_(student.scale).unflatten(0, (views, -1))
        total = _shift(scores)
        for s, g in enumerate(scores):
            target = torch.einsum("t,tgk->gk", pairs[s], q)
            loss[s, block] = shares[s] * total[s] - (target * g).sum(-1)
            if row_weight is not None:
                g.exp_().mul_((shares[s] / total[s].exp())[:, None]).sub_(target)
                g.mul_((row_weight[s, block] * student.scale)[:, None])
        if wants.rows:
            d_rows[:, block] = scores @ w
        if wants.weight:
            d_weight.addmm_(scores.flatten(0, 1).T, rows)
    usage /= max(entropy.numel(), 1)
    return loss, entropy, usage, d_rows, d_weight


def _shift(scores: Tensor) -> Tensor:
    """Subtract the greatest of every row, in place; the log-sum-exps of what is left."""
    scores -= scores.amax(-1, keepdim=True)
    return scores.exp().sum(-1).log_()
