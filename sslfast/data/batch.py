"""The one thing that every loader yields and every method takes."""

import copy
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor


def map_tensors(
    nest: Any,
    function: Callable[[Tensor], Tensor],
    of_strings: Callable[[list[str]], Any] | None = None,
) -> Any:
    """Apply ``function`` to every tensor of a nest of tuples, lists and dicts.

    Args:
        nest: tuples may have names, dicts may be of a class of their own: they stay what they are.
        function: of a tensor.
        of_strings: of a list of strings, one for each sample; None: they stay as they are.
    """
    if isinstance(nest, Tensor):
        return function(nest)
    if _strings(nest):
        return nest if of_strings is None else of_strings(nest)
    if isinstance(nest, MutableMapping):
        return _with(nest, {k: map_tensors(v, function, of_strings) for k, v in nest.items()})
    if isinstance(nest, (list, tuple)):
        return _with(nest, [map_tensors(value, function, of_strings) for value in nest])
    return nest


def join_tensors(nests: Sequence[Any]) -> Any:
    """Concatenate nests of the same form, tensors along the first dimension, lists of strings."""
    first = nests[0]
    if isinstance(first, Tensor):
        return torch.cat(list(nests))
    if _strings(first):
        return [string for nest in nests for string in nest]
    if isinstance(first, MutableMapping):
        return _with(first, {key: join_tensors([nest[key] for nest in nests]) for key in first})
    if isinstance(first, (list, tuple)):
        return _with(first, [join_tensors(parts) for parts in zip(*nests, strict=True)])
    return first


def _strings(nest: Any) -> bool:
    """Whether it is a list of strings: a string for each sample, as captions come."""
    return isinstance(nest, list) and bool(nest) and all(isinstance(x, str) for x in nest)


def _with(nest: Any, values: Any) -> Any:
    """A tuple, list or dict of the same class with these values."""
    if isinstance(nest, MutableMapping):
        nest = copy.copy(nest)
        for key, value in values.items():
            nest[key] = value
        return nest
    return type(nest)(*values) if hasattr(nest, "_fields") else type(nest)(values)


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
