"""Sinkhorn-Knopp: how much the scores of each prototype are shifted so that all are used alike."""

from typing import Any

import torch
from torch import Tensor

from sslfast._arguments import PositiveInt, checked
from sslfast.kernels.dtypes import FLOATS, accumulation_dtype
from sslfast.kernels.exchange import name_of, world_size
from sslfast.kernels.sinkhorn.op import merged
from sslfast.kernels.sinkhorn.op import sinkhorn as log_scaling
from sslfast.kernels.sinkhorn.reference import of_scores as scaling_of_scores
from sslfast.losses._inputs import scale_of


@checked
def sinkhorn(
    features: Tensor,
    prototypes: Tensor,
    *,
    temperature: float | Tensor = 0.05,
    iterations: PositiveInt = 3,
    gather_distributed: bool = False,
    process_group: Any = None,
) -> Tensor:
    """What to add to scores so that their softmax is SwAV's codes: ``teacher_bias``.

    Caron et al. 2020, arXiv:2006.09882, section 3.1: with scores s = features prototypes' /
    temperature, exp(s) is scaled by columns and rows in turn, until all prototypes have the same
    sum; at the end rows sum to 1. They are then softmax(s + bias), for the bias found here. All is
    in the log domain: nothing overflows, in whatever dtype.

    Args:
        features: [N, D]; where there are fewer than prototypes, these cannot all be used.
        prototypes: [K, D].
        temperature: a number, or a tensor of one (epsilon).
        iterations: each a pass over the scores, which are never N x K in memory.
        gather_distributed: over the features of all ranks, which may have different numbers of
            them. K numbers travel twice an iteration.
        process_group: the ranks; None: all.

    Returns:
        [K] in float32 (float64 for float64 features), without a gradient; the same on all ranks.

    Raises:
        TypeError: tensors that are not of a floating dtype.
        ValueError: shapes or devices that do not fit, no features where there is one process, a
            temperature of 0, less than one iteration.
    """
    for name, x in {"features": features, "prototypes": prototypes}.items():
        if not isinstance(x, Tensor) or x.dtype not in FLOATS:
            what = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"{name} must be a floating-point tensor, got {what}")
    if features.dim() != 2 or prototypes.dim() != 2 or features.shape[1] != prototypes.shape[1]:
        raise ValueError(
            f"features [N, D] and prototypes [K, D] must have the same D, got "
            f"{list(features.shape)} and {list(prototypes.shape)}"
        )
    if features.device != prototypes.device:
        raise ValueError(
            f"features are on {features.device}, but prototypes are on {prototypes.device}"
        )
    ranks = gather_distributed and world_size(process_group) > 1
    if not len(prototypes) or not (len(features) or ranks):
        raise ValueError(
            f"there is nothing to compare: features {list(features.shape)}, prototypes "
            f"{list(prototypes.shape)}"
        )
    scale = scale_of(temperature, features).detach()
    group = name_of(process_group) if ranks else None
    with torch.no_grad():
        return log_scaling(features.detach(), prototypes.detach(), scale, iterations, group)


def of_scores(
    scores: Tensor,
    *,
    temperature: float,
    iterations: int,
    gather_distributed: bool,
    process_group: Any,
) -> Tensor:
    """The same of scores [N, K], which are in memory."""
    over_ranks = gather_distributed and world_size(process_group) > 1
    with torch.no_grad():
        scaled = scores.to(accumulation_dtype(scores.dtype)) / temperature
        return scaling_of_scores(
            scaled,
            iterations,
            lambda lse: merged(lse, name_of(process_group)) if over_ranks else lse,
        )
