"""The loss of a row, from the log-sum-exp over its negatives and the logit of its positive."""

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce_from_logits(lse: Tensor, positive: Tensor, unit: bool) -> Tensor:
    """-log(exp(positive) / (exp(positive) + exp(lse))) per row, exact when pairs have converged.

    ``lse`` is over the negatives alone, so that the loss is softplus(lse - positive) and no two
    large numbers are subtracted where the result is small.

    Args:
        lse: over the negatives [M].
        positive: logits of the positives [M].
        unit: whether logits are cosines times the scale. Others may be +inf, and then the loss is
            NaN as in F.cross_entropy: +inf against -inf would pass for certainty here.
    """
    gap = lse - positive
    if not unit:
        gap = torch.add(gap, torch.maximum(lse, positive).detach(), alpha=0)  # 0 * inf is NaN
    # Beyond 40, log1p(exp(-x)) is below the resolution of float64: softplus(x) is x.
    return F.softplus(gap, threshold=40.0)
