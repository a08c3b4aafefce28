"""Optimisers that do one pass over all tensors, with the EMA teacher in it."""

from typing import Any

from torch import nn

from .adamw import AdamW
from .lars import LARS

__all__ = ["LARS", "AdamW", "param_groups"]


def param_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Two groups of the parameters that are trained: matrices, and biases, norms and scalars.

    The second takes no weight decay, nor, with LARS, a trust ratio: SimCLR and BYOL leave both out
    there.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim > 1]},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
