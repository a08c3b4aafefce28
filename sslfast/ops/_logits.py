"""The loss of a row, from the log-sum-exp over its negatives and the logit of its positive."""

import torch
import torch.nn.functional as F
from torch import Tensor


def log_odds(lse: Tensor, positive: Tensor) -> Tensor:
    """Logarithm of the negatives' odds, lse - positive; NaN where one of the logits is +inf.

    A softmax over +inf is inf / inf, as eager PyTorch has it; without this inf - inf is all that
    shows, and +inf against -inf would pass for certainty.
    """
    return lse - positive + 0 * torch.maximum(lse, positive).detach().clamp_min(0)


def info_nce_from_logits(lse: Tensor, positive: Tensor) -> Tensor:
    """-log(exp(positive) / (exp(positive) + exp(lse))) per row, exact when pairs have converged.

    ``lse`` is over the negatives alone, so that the loss is softplus(lse - positive) and no two
    large numbers are subtracted where the result is small.
    """
    # Beyond 40, log1p(exp(-x)) is below the resolution of float64: softplus(x) is x.
    return F.softplus(log_odds(lse, positive), threshold=40.0)
