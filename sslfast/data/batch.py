"""The one thing that every loader yields and every method takes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor


def map_tensors(nest: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply ``function`` to every tensor of a nest of tuples, lists and dicts."""
    if isinstance(nest, Tensor):
        return function(nest)
    if isinstance(nest, dict):
        return {key: map_tensors(value, function) for key, value in nest.items()}
    if isinstance(nest, (list, tuple)):
        return type(nest)(map_tensors(value, function) for value in nest)
    return nest


def join_tensors(nests: Sequence[Any]) -> Any:
    """Concatenate nests of the same form tensor by tensor, along the first dimension."""
    first = nests[0]
    if isinstance(first, Tensor):
        return torch.cat(list(nests))
    if isinstance(first, dict):
        return {key: join_tensors([nest[key] for nest in nests]) for key in first}
    if isinstance(first, (list, tuple)):
        return type(first)(join_tensors(parts) for parts in zip(*nests, strict=True))
    return first


@dataclass(frozen=True)
class Batch:
    """One batch of any modality.

    Attributes:
        views: a nest (tensor, tuple, list or dict) of tensors whose first dimension is the batch
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
