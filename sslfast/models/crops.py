"""Views of several sizes through an encoder, in as few passes as it can do with."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sslfast._nests import map_tensors


def encode_crops(module: Callable[[Tensor], Any], views: Sequence[Tensor]) -> list[Any]:
    """What a module makes of every view.

    All sizes share one pass where the module has ``forward_crops``, as Vision Transformers have, or
    is an nn.Sequential that begins with such a one; other modules make one pass for each size.
    Batch norm takes its statistics over the views of equal size.

    Args:
        module: maps images [N, C, H, W] to a tensor [N, ...], or to a nest of such tensors.
        views: [B, C, H, W] each; in whatever order sizes come.

    Returns:
        The outputs of the views, in their order.
    """
    return per_view(views, lambda images: of_sizes(module, images))


def of_sizes(module: Callable[[Tensor], Any], images: list[Tensor]) -> list[Any]:
    """What a module makes of images of several sizes [N, C, H, W], one tensor of each size."""
    if hasattr(module, "forward_crops"):
        return module.forward_crops(images)
    if type(module) is nn.Sequential:  # each layer by itself: the first may be an encoder
        for layer in module:
            images = of_sizes(layer, images)
        return images
    return [module(x) for x in images]


def per_view(views: Sequence[Tensor], run: Callable[[list[Tensor]], list[Any]]) -> list[Any]:
    """Join views of equal size, run them, and give every view its own outputs.

    Args:
        views: see ``encode_crops``.
        run: maps the images of each size [N, C, H, W] to outputs [N, ...], or nests of such.
    """
    places: dict[Any, list[int]] = {}
    for k, view in enumerate(views):
        places.setdefault(view.shape[1:], []).append(k)
    groups = [[views[k] for k in where] for where in places.values()]
    whole = run([group[0] if len(group) == 1 else torch.cat(group) for group in groups])
    outputs: list[Any] = [None] * len(views)
    for where, group, together in zip(places.values(), groups, whole, strict=True):
        start = 0
        for k, view in zip(where, group, strict=True):
            rows = slice(start, start + len(view))
            outputs[k] = map_tensors(together, lambda x, rows=rows: x[rows])  # type: ignore[misc]
            start = rows.stop
    return outputs
