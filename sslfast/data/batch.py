"""The one thing that every loader yields and every method takes."""

from collections.abc import Callable
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
