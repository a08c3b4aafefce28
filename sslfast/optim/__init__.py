"""Optimisers that do one pass over all tensors, with the EMA teacher in it."""

from typing import Any

from torch import nn

from sslfast.optim.adamw import AdamW
from sslfast.optim.lars import LARS

__all__ = ["LARS", "AdamW", "param_groups"]


def param_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Two groups of the parameters that are trained: matrices, and biases, norms and scalars.

    The second takes no weight decay, nor, with LARS, a trust ratio: SimCLR and BYOL leave both out
    there. What a module of it names in ``no_weight_decay()`` (positions and tokens of a Vision
    Transformer) belongs to it, too.
    """
    free: set[nn.Parameter] = set()
    for part in module.modules():
        named: set[str] = getattr(part, "no_weight_decay", set)()
        free |= {p for name, p in part.named_parameters(recurse=False) if name in named}
    parameters = [p for p in module.parameters() if p.requires_grad]
    decayed = [p.ndim > 1 and p not in free for p in parameters]
    groups: list[dict[str, Any]] = [
        {"params": [p for p, decay in zip(parameters, decayed, strict=True) if decay]},
        {
            "params": [p for p, decay in zip(parameters, decayed, strict=True) if not decay],
            "weight_decay": 0.0,
        },
    ]
    return [group for group in groups if group["params"]]
