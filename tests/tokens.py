"""Tokenizers of noise, and what else tests need to build every method."""

from typing import Any

import torch

from sslfast import models
from sslfast.tokenizers import PatchTokenizer, TokenizerSpec


def toy_tokenizer(vocab_size: int = 32, patch_size: int = 4, **keywords: Any) -> PatchTokenizer:
    """A codebook of patches of random images of 16 pixels."""
    tokenizer = PatchTokenizer(TokenizerSpec(vocab_size, patch_size, 16, **keywords))
    images = torch.randn(40, 3, 16, 16, generator=torch.Generator().manual_seed(8))
    tokenizer.fit(images.split(16), 16)
    return tokenizer


def needed(name: str) -> dict[str, Any]:
    """Hyperparameters without which a method cannot be built, or only with wide heads."""
    heads = {"hidden_dim": 32, "out_dim": 16}
    prototypes = {"hidden_dim": 32, "bottleneck_dim": 16, "out_dim": 32}
    return {
        "barlow_twins": heads,
        "beit": {"tokenizer": toy_tokenizer()},
        "byol": {**heads, "momentum": 0.9},
        "dino": prototypes,
        "dinov2": prototypes,
        "distill": {"teacher": models.create("convnet_small", width=8, depth=1)},
        "gcmae": {"bank_size": 64},
        "ibot": prototypes,
        "lejepa": {**heads, "num_vectors": 64},
        "mocov2": {"queue": 40, "out_dim": 16},
        "mocov3": heads,
        "msn": prototypes,
        "simsiam": {**heads, "predictor_dim": 8},
        "swav": {"prototypes": 32, **heads},
        "vicreg": heads,
        "vssl": heads,
    }.get(name, {})
