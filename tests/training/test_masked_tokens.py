"""A method on data of a kind that sslfast does not know: masked bytes of a text."""

from pathlib import Path
from typing import Any

import pytest
import torch
from byte_tokens import LENGTH, SPEC, register
from torch import Tensor, nn
from toys import entries, whole_and_resumed

import sslfast
from sslfast.data import Batch
from sslfast.functional import linear_cross_entropy
from sslfast.masking import TokenMask, token_mask
from sslfast.methods import registry
from sslfast.methods.base import Context, Method, Reference
from sslfast.models import registry as model_registry

STEPS = 50
MASK = 256


class ByteEncoder(nn.Module):
    """Tokens [B, L] -> features [B, L, D] of each, from its neighbours."""

    modality = "tokens"

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.num_features = width
        self.embed = nn.Embedding(257, width)
        self.mix = nn.Conv1d(width, width, 5, padding=2)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        return x + self.mix(x.mT).relu().mT


class MaskedBytes(Method):
    """Predict the bytes that are hidden, as BERT predicts words."""

    recipe = "noisy_text"
    modalities = ("tokens",)
    reference = Reference("Devlin et al. 2019, arXiv:1810.04805", {"mask_ratio": 0.15})

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__(encoder)
        self.head = nn.Linear(int(encoder.num_features), 256)

    def encode(self, batch: Batch, ctx: Context) -> tuple[Tensor, TokenMask]:
        masked = token_mask(
            *(batch.views.clean, MASK + 1, MASK),
            **{"seed": ctx.seed, "step": ctx.drawn_step, "sample_ids": batch.sample_ids},
        )
        return self.encoder(masked.tokens), masked

    def loss(self, outputs: tuple[Tensor, TokenMask], ctx: Context) -> dict[str, Tensor]:
        features, masked = outputs
        return {
            "loss": linear_cross_entropy(features, self.head.weight, masked.labels, self.head.bias)
        }


def test_it_trains_and_resumes_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)
    monkeypatch.setitem(registry._METHODS, "masked_bytes", MaskedBytes)
    monkeypatch.setitem(model_registry._FACTORIES, "bytes", ByteEncoder)
    config: dict[str, Any] = {
        **{"method": "masked_bytes", "model": "bytes", "data": SPEC, "steps": STEPS},
        **{"batch_size": 16, "lr": 0.02, "device": "cpu", "log_every": 5, "checkpoint_every": 20},
    }
    out = {**config, "out": str(tmp_path)}
    whole, again, _ = whole_and_resumed(out, MaskedBytes, monkeypatch)
    losses = [entry["loss"] for entry in entries(whole)]
    assert losses[0] > 4
    assert losses[-1] < 3.2  # nats; to know the frequency of every byte alone gives 3.1
    encoder = sslfast.load_encoder(again.path)
    assert encoder(torch.zeros(2, LENGTH, dtype=torch.int64)).shape == (2, LENGTH, 32)
    assert encoder.preprocess is None
