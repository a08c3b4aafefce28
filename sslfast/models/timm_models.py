"""Encoders of timm, by their names there."""

from typing import Any

from torch import nn

from sslfast._extras import require

PREFIX = "timm:"


def timm_encoder(name: str, **keywords: Any) -> nn.Module:
    """The model ``name`` of timm, without its classifier: images [B, C, H, W] -> features [B, F].

    Args:
        name: as ``timm.list_models()`` has it, such as "convnext_tiny".
        **keywords: those of ``timm.create_model``, such as ``pretrained`` or ``img_size``.

    Returns:
        The model, with the width F as ``num_features``.

    Raises:
        MissingExtra: timm is not installed.
        ValueError: timm has no such model, or the model no such keyword.
    """
    timm = require("timm", extra="timm", purpose=f"the model {PREFIX}{name}")
    if "num_classes" in keywords:
        raise ValueError(f"{PREFIX}{name} is an encoder, without num_classes: leave that out")
    try:
        encoder: nn.Module = timm.create_model(name, num_classes=0, **keywords)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"{PREFIX}{name}: timm cannot build it: {error}") from error
    # What leaves the model: of some, a layer behind the pooling is wider than its num_features.
    encoder.num_features = int(getattr(encoder, "head_hidden_size", None) or encoder.num_features)  # type: ignore[assignment, arg-type]
    return encoder
