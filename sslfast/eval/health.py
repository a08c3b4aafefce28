"""Whether features have collapsed, seen without a label: their effective rank and their spread."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sslfast.eval.features import check_usable

# What RankMe looked at: more change the estimate little.
MOST_ROWS = 25_600
# Of wide features (pixels), so that singular values take seconds.
MOST_SQUARE = 4096
_EPS = 1e-7


def feature_health(features: Tensor) -> dict[str, float]:
    """Effective rank and spread of features.

    Collapse is complete where the spread is 0, all features being one point, and partial where the
    effective rank is far below D, all lying in few dimensions.

    - "effective_rank", from 1 to min(N, D): exp(- sum_k p_k log p_k), where p_k is singular value k
      of the matrix as it is, divided by the sum of all (RankMe: Garrido et al. 2023,
      arXiv:2210.02885, equation 2). A common offset of all features counts as one direction.
    - "feature_std", from 0 to 1 / sqrt(D): the deviation over the samples of each dimension, of
      features scaled to unit length; the mean over the dimensions. It is 1 / sqrt(D) where they
      point everywhere alike (SimSiam: Chen and He 2021, arXiv:2011.10566, section 4.1), and less
      where they have a common offset, as after a ReLU.

    Args:
        features: floats [N, D], on any device. Of more than 25,600 rows (4,096 where D is larger
            than that) as many, evenly spaced, are looked at. Sums are in float64.

    Raises:
        ValueError: no features, some that are not finite, or no matrix of floats.
    """
    if not isinstance(features, Tensor) or features.dim() != 2 or not features.is_floating_point():
        got = type(features).__name__
        if isinstance(features, Tensor):
            got = f"{features.dtype} {list(features.shape)}"
        raise ValueError(f"features must be a floating-point tensor [N, D], got {got}")
    if features.numel() == 0:
        raise ValueError(f"there are no features: the tensor is empty, {list(features.shape)}")
    check_usable(features, "given")
    most = MOST_ROWS if features.shape[1] <= MOST_SQUARE else MOST_SQUARE
    if len(features) > most:
        features = features[torch.arange(most, device=features.device) * len(features) // most]
    x = features.double()
    gram = x @ x.T if x.shape[0] < x.shape[1] else x.T @ x
    values = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    part = values / values.sum().clamp_min(torch.finfo(torch.float64).tiny) + _EPS
    rank = (-part * part.log()).sum().exp().clamp(1, min(x.shape))  # which _EPS overshoots a little
    spread = F.normalize(x, dim=1).std(dim=0, correction=0).mean()
    return {
        "effective_rank": float(rank),
        "feature_std": float(spread),
    }
