"""The oracle: the definition, written down with all logits in memory."""

import torch
from torch import Tensor

from sslfast.kernels.dtypes import accumulation_dtype
from sslfast.kernels.linear_cross_entropy import Wants

DEVICE = "any"
PRIORITY = 0


def _logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None = None
) -> Tensor:
    dtype = accumulation_dtype(hidden.dtype)
    logits = hidden.to(dtype) @ weight.to(dtype).T
    if bias is not None:
        logits = logits + bias.to(dtype)
    return logits if softcap is None else softcap * (logits / softcap).tanh()


def forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-sum-exps over the other classes, and the targets' logits; see the package."""
    logits = _logits(hidden, weight, bias, softcap)
    if targets.is_floating_point():
        return logits.logsumexp(1), targets
    at = targets[:, None]
    return logits.scatter(1, at, -torch.inf).logsumexp(1), logits.gather(1, at).squeeze(1)


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
    lse, target_logit = forward(hidden, weight, bias, targets, softcap)
    logits = _logits(hidden, weight, bias, softcap)
    p = (logits - torch.logaddexp(lse, target_logit)[:, None]).exp()
    share = torch.zeros_like(p)
    if not targets.is_floating_point():
        share.scatter_(1, targets[:, None], 1.0)
    g = row_weight[:, None] * (p - share + smoothing * (share - 1 / len(weight)))
    if softcap is not None:
        g = g * (1 - (logits / softcap).square())
    return (
        lse,
        target_logit,
        g @ weight.to(g.dtype) if wants.hidden else g.new_empty(0),
        g.T @ hidden.to(g.dtype) if wants.weight else g.new_empty(0),
        g.sum(0) if wants.bias else g.new_empty(0),
    )
