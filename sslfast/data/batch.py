"""The one thing that every loader yields and every method takes."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from sslfast._nests import join_tensors, map_tensors


@dataclass(frozen=True)
class Batch:
    """One batch of any modality.

    Attributes:
        views: any nest of tensors (see ``map_tensors``) whose first dimension is the batch
            (images: a tuple of float tensors [B, C, H, W], one a view).
        sample_ids: int64 [B], the position of each sample in its data set; keys all randomness.
        labels: int64 [B], or None where the data set has none.
        meta: anything else, passed through untouched.
    """

    views: Any
    sample_ids: Tensor
    labels: Tensor | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.sample_ids)

    @classmethod
    def join(cls, batches: Sequence["Batch"]) -> "Batch":
        """All samples of some batches, one batch after another; ``meta`` of the first."""
        first = batches[0]
        if len(batches) == 1:
            return first
        parts = [(batch.views, batch.sample_ids, batch.labels) for batch in batches]
        views, sample_ids, labels = join_tensors(parts)
        return cls(views, sample_ids, labels, first.meta)

    def to(self, device: torch.device | str) -> "Batch":
        """Move every tensor to ``device`` (asynchronously where the source is pinned)."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        return replace(
            self,
            views=map_tensors(self.views, move),
            sample_ids=move(self.sample_ids),
            labels=None if self.labels is None else move(self.labels),
        )
