"""The README's table of methods, made from their registry: a new method needs no edit of it."""

import re

from torch import nn

from sslfast import methods

CONFIG = "configs/{}/small.yaml"


def line(name: str) -> str:
    """One method's line."""
    method = methods.get(name)
    paper = re.sub(
        r"arXiv:([\d.]+)", r"[arXiv:\1](https://arxiv.org/abs/\1)", method.reference.paper
    )
    views = len(method.own_recipe().views)
    kinds = " or ".join(f"{modality}s" for modality in method.modalities)
    data = f"{kinds}, {views} view{'s' if views > 1 else ''} of each"
    encoder = "any" if method.encoders is nn.Module else f"`{method.encoders.__name__}`"
    published = method.reference.hyperparameters.get("model")
    if published:
        encoder += f"; the paper's `{published}`"
    return f"| `{name}` | {paper} | {data} | {encoder} | `--config {CONFIG.format(name)}` |"


def table() -> str:
    """All methods, by name."""
    head = [
        "| method | paper | data | encoder | `sslfast train --out runs/METHOD` and |",
        "|---|---|---|---|---|",
    ]
    return "\n".join([*head, *map(line, methods.names())]) + "\n"
