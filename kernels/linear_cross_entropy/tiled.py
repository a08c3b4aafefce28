"""Torch only, any device: a block of rows meets all classes, and leaves its gradients behind.

6 N V D FLOP with gradients, in three products a block; extra memory: the logits of a block, with a
softcap twice.
"""

import torch
from torch import Tensor

from sslfast.kernels.dtypes import accumulation_dtype
from sslfast.kernels.linear_cross_entropy import Wants

DEVICE = "any"
PRIORITY = 10

BLOCK_ELEMENTS = 1 << 24


def rows_of_a_block(classes: int) -> int:
    """Rows whose logits are in memory at a time."""
    return max(BLOCK_ELEMENTS // classes, 1)


def _block(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, softcap: float | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Logits of a block with -inf for the targets, the targets' logits, the softcap's slopes."""
    logits, slopes = hidden @ weight.T, None
    if bias is not None:
        logits += bias
    if softcap is not None:
        logits.div_(softcap).tanh_()
        slopes = 1 - logits.square()
        logits.mul_(softcap)
    if targets.is_floating_point():
        return logits, targets, slopes
    target_logit = logits.gather(1, targets[:, None]).squeeze(1)
    logits.scatter_(1, targets[:, None], -torch.inf)
    return logits, target_logit, slopes


def forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-sum-exps over the other classes, and the targets' logits; see the package."""
    none = Wants(hidden=False, weight=False, bias=False)
    return _run(hidden, weight, bias, targets, None, 0.0, none, softcap)[:2]


def gradients(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    row_weight: Tensor,
    smoothing: float,
    wants: Wants,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Statistics and gradients; see the package."""
    return _run(hidden, weight, bias, targets, row_weight, smoothing, wants, softcap)


def _run(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    row_weight: Tensor | None,
    smoothing: float,
    wants: Wants,
    softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dtype = accumulation_dtype(hidden.dtype)
    hidden, weight = hidden.to(dtype), weight.to(dtype)
    bias = None if bias is None else bias.to(dtype)
    lse, target_logit = hidden.new_empty(len(hidden)), hidden.new_empty(len(hidden))
    d_hidden = torch.empty_like(hidden) if wants.hidden else hidden.new_empty(0)
    d_weight = torch.zeros_like(weight) if wants.weight else hidden.new_empty(0)
    d_bias = hidden.new_zeros(len(weight) if wants.bias else 0)
    step = rows_of_a_block(len(weight))
    for i in range(0, len(hidden), step):
        rows = slice(i, i + step)
        x, y = hidden[rows], targets[rows]
        g, target, slopes = _block(x, weight, bias, y, softcap)
        target_logit[rows] = target
        # Without a log-sum-exp: rounded, large ones have few digits behind the point.
        maximum = g.amax(1).clamp_min_(torch.finfo(dtype).min)  # where there is no other class
        others = g.sub_(maximum[:, None]).exp_().sum(1)
        lse[rows] = maximum + others.log()
        if row_weight is None:
            continue
        greatest = torch.maximum(maximum, target)
        factor = (maximum - greatest).exp()
        total = others * factor + (target - greatest).exp()
        uniform = smoothing / len(weight)
        g.mul_((factor / total)[:, None]).sub_(uniform)
        if not y.is_floating_point():  # 1 - p without cancellation: p may be close to 1
            others *= factor / total
            g.scatter_(1, y[:, None], (smoothing - uniform - others)[:, None])
        g.mul_(row_weight[rows, None])
        if slopes is not None:
            g.mul_(slopes)
        if wants.hidden:
            torch.mm(g, weight, out=d_hidden[rows])
        if wants.weight:
            d_weight.addmm_(g.T, x)
        if wants.bias:
            d_bias += g.sum(0)
    return lse, target_logit, d_hidden, d_weight, d_bias
