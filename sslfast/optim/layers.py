"""Parameters by the layers of an encoder."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn


def layered(groups: list[dict[str, Any]], encoder: nn.Module, decay: float) -> list[dict[str, Any]]:
    """The groups divided by the encoder's layers, whose rates fall by ``decay`` with each one down.

    Layer-wise decay of BEiT (Bao et al. 2022, arXiv:2106.08254, appendix) and MAE: of L layers,
    number l has the rate lr decay^(L - l); what is not the encoder's has lr.

    Args:
        groups: as ``Method.param_groups`` returns them.
        encoder: with ``layers()``: its modules and parameters from the input up, in lists.
        decay: in (0, 1].

    Raises:
        ValueError: an encoder that does not say what its layers are.
    """
    layers_of: Callable[[], Sequence[Sequence[nn.Module | nn.Parameter]]] | None
    layers_of = getattr(encoder, "layers", None)
    if not callable(layers_of):
        raise ValueError(
            f"{type(encoder).__name__} does not say what its layers are (a method "
            "layers()): choose a Vision Transformer, or leave layer_decay out"
        )
    layers = layers_of()
    depth: dict[nn.Parameter, int] = {}
    for number, parts in enumerate(layers):
        for part in parts:
            for parameter in part.parameters() if isinstance(part, nn.Module) else [part]:
                depth[parameter] = number
    found: dict[tuple[int, int | None], dict[str, Any]] = {}
    for index, group in enumerate(groups):
        for parameter in group["params"]:
            place = depth.get(parameter)
            scale = 1.0 if place is None else decay ** (len(layers) - 1 - place)
            rate = group.get("lr_scale", 1.0) * scale
            home = found.setdefault((index, place), {**group, "params": [], "lr_scale": rate})
            home["params"].append(parameter)
    return list(found.values())
