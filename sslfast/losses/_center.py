"""What the losses with a centre share: how it moves, and their form over scores in memory."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sslfast.kernels.exchange import RanksMean
from sslfast.losses._inputs import check_embeddings
from sslfast.losses.prototypes import Comparison
from sslfast.losses.sinkhorn import sinkhorn


@torch.no_grad()
def follow(center: Tensor, every: RanksMean, weight: Tensor | None, momentum: float) -> None:
    """Move a centre [..., K] to the mean of all scores: the scores of the mean of all features.

    Args:
        center: is written.
        every: of the teacher's outputs. Where there were none the centre stays.
        weight: the teacher's prototypes [K, E]; None: the outputs are scores.
        momentum: of the centre.
    """
    mean = every.mean
    with torch.autocast(mean.device.type, enabled=False):
        scores = mean if weight is None else weight.detach().to(mean.dtype) @ mean
    step = (1 - momentum) * (every.rows > 0).to(center.dtype)
    center.lerp_(scores.to(center.dtype).view_as(center), step)


def shift(
    center: Tensor,
    mode: str,
    scale: Tensor,
    rows: Tensor,
    weight: Tensor | None,
    temperature: float | Tensor,
    group: Any,
) -> Tensor:
    """What is added to the teacher's scores [K]: the centre's, or Sinkhorn's of this batch.

    Args:
        center: [..., K].
        mode: "mean" or "sinkhorn".
        scale: 1 / temperature, 0-d.
        rows: the teacher's outputs [N, E].
        weight: the teacher's prototypes [K, E], where outputs are features.
        temperature: the teacher's.
        group: the ranks.
    """
    if mode == "mean":
        return -scale * center.flatten().to(scale.dtype)
    if weight is None:
        raise ValueError("center_mode='sinkhorn' takes features, and their prototypes as weight")
    return sinkhorn(
        rows, weight.detach(), temperature=temperature,
        gather_distributed=True, process_group=group,
    )  # fmt: skip


def check_prototypes(center: Tensor, scores: Tensor) -> None:
    """Raise ValueError unless scores [..., K] are of as many prototypes as the centre."""
    known, given = center.numel(), scores.shape[-1]
    if known != given:
        raise ValueError(
            f"this loss was made for output_dim={known} prototypes, got {given}: make it with "
            f"output_dim={given}; where outputs are features, give their prototypes as weight"
        )


def stacked(name: str, views: Sequence[Tensor]) -> Tensor:
    """Views [B, D] of one shape as [V, B, D]."""
    if len(views) == 0:
        raise ValueError(f"{name} has no views")
    if isinstance(views, Tensor) and views.dim() == 2:
        raise TypeError(f"{name} must be a list of views [B, D], got one tensor")
    check_embeddings(**{f"{name}[{k}]": view for k, view in enumerate(views)})
    return views if isinstance(views, Tensor) else torch.stack(list(views))


def of_scores(
    student: Tensor,
    teacher: Tensor,
    temperature: float,
    scale: Tensor,
    bias: Tensor,
    pairs: Tensor,
    row_weight: Tensor | None = None,
) -> Comparison:
    """``compare_prototypes`` of scores [S, G, K] and [T, G, K], which are in memory.

    Args:
        student: scores.
        teacher: scores.
        temperature: the student's.
        scale: 1 / the teacher's temperature, 0-d.
        bias: [K] or [T, 1, K], added to the teacher's scores times the scale.
        pairs: [S, T].
        row_weight: [S, G]; None: the mean over samples and pairs.
    """
    dtype = pairs.dtype
    with torch.autocast(student.device.type, enabled=False):
        log_q = (teacher.detach().to(dtype) * scale + bias).log_softmax(-1)
        q = log_q.exp()
        losses = [
            F.cross_entropy(
                scores.to(dtype) / temperature,
                torch.einsum("t,tgk->gk", weights, q),
                reduction="none",
            )
            for scores, weights in zip(student, pairs, strict=True)
        ]
        if row_weight is None:
            loss = torch.stack(losses).sum() / (teacher.shape[1] * pairs.sum())
        else:
            loss = (torch.stack(losses) * row_weight).sum()
        return Comparison(loss, -(q * log_q).sum(-1), q.mean((0, 1)))
