"""The README's table of methods, made from their registry: a new method needs no edit of it."""

import re
from typing import Any

from torch import nn

from sslfast import methods
from sslfast.models import VisionTransformer

SMALL_DATA = {"image": "builtin:photos", "video": "builtin:clips"}  # of each modality
FILES = {"tokenizer": "tokens.safetensors"}  # as pages and messages call them
ALL = {"image_size": 32, "epochs": 20, "out": "runs/METHOD"}


def settings(name: str) -> dict[str, Any]:
    """What a method needs to be told for a small training, beside what all are told."""
    method = methods.get(name)
    chosen: dict[str, Any] = {"method": name, "data": SMALL_DATA.get(method.modalities[0], "DATA")}
    if method.encoders is VisionTransformer:
        chosen["model"] = "vit_micro"
    frames = method.own_recipe().views[0].num_frames
    if frames:
        chosen["model_args"] = {"num_frames": frames}
    if method.files:
        chosen["method_args"] = {
            file: FILES.get(file, f"{file}.safetensors") for file in method.files
        }
    return chosen


def flags(settings: dict[str, Any]) -> str:
    """Settings as they are written on the command line."""
    words = []
    for key, value in settings.items():
        flag = f"--{key.replace('_', '-')}"
        parts = (
            {f"{flag}.{k}": v for k, v in value.items()}
            if isinstance(value, dict)
            else {flag: value}
        )
        words += [f"{name} {part}" for name, part in parts.items()]
    return " ".join(words)


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
    return f"| `{name}` | {paper} | {data} | {encoder} | `{flags(settings(name))}` |"


def table() -> str:
    """All methods, by name."""
    head = [
        f"| method | paper | data | encoder | `sslfast train {flags(ALL)}` and |",
        "|---|---|---|---|---|",
    ]
    return "\n".join([*head, *map(line, methods.names())]) + "\n"
