"""What the methods that compare views of an image share."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sslfast._nests import map_tensors
from sslfast.methods.base import Progress
from sslfast.optim.schedules import warmup_cosine


def encode_crops(module: Callable[[Tensor], Any], views: Sequence[Tensor]) -> list[Any]:
    """What a module makes of every view, in one forward pass for all views of equal size.

    Batch norm within it takes its statistics over the views that pass together.

    Args:
        module: maps images [N, C, H, W] to a tensor [N, ...], or to a nest of such tensors.
        views: [B, C, H, W] each; in whatever order sizes come.

    Returns:
        The outputs of the views, in their order.
    """
    outputs: list[Any] = [None] * len(views)
    for size in dict.fromkeys(view.shape[1:] for view in views):
        places = [k for k, view in enumerate(views) if view.shape[1:] == size]
        together = module(torch.cat([views[k] for k in places]))
        start = 0
        for k in places:
            rows = slice(start, start + len(views[k]))
            outputs[k] = map_tensors(together, lambda x, rows=rows: x[rows])  # type: ignore[misc]
            start = rows.stop
    return outputs


def spread(embeddings: Tensor) -> Tensor:
    """How far embeddings [N, D] lie apart: 0 is a collapse to one point, 1 even on the sphere.

    sqrt(D) times the mean deviation of a coordinate over rows of unit length (Chen and He 2020,
    arXiv:2011.10566, section 4.1).

    Returns:
        A 0-dim float32 tensor without a gradient.
    """
    with torch.no_grad(), torch.autocast(embeddings.device.type, enabled=False):
        rows = F.normalize(embeddings.detach().float(), dim=1)
        return rows.std(0, correction=0).mean() * math.sqrt(rows.shape[1])


def similarity(first: Tensor, second: Tensor) -> Tensor:
    """Mean cosine similarity of pairs [N, D], float32 without a gradient: 1 when all agree."""
    return F.cosine_similarity(first.detach().float(), second.detach().float()).mean()


def cosine_momentum(start: float, progress: Progress) -> float:
    """A teacher's momentum that rises from ``start`` to 1 by half a cosine (BYOL, section 3.3)."""
    return warmup_cosine(progress.step, peak=start, warmup=0, total=progress.total_steps, end=1.0)
