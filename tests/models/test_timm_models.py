"""timm's models as encoders: a real class of timm's, by a stand-in for its list of models."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import peers
from sslfast import methods, models
from sslfast._extras import MissingExtra
from sslfast.data.batch import Batch
from sslfast.methods.base import Context
from sslfast.models import timm_models


@pytest.fixture
def _timm(monkeypatch: pytest.MonkeyPatch) -> None:
    vit = peers.timm_model("vision_transformer").VisionTransformer

    def create_model(name: str, **keywords: Any) -> nn.Module:
        if name != "vit_of_timm":
            raise RuntimeError(f"Unknown model ({name})")
        return vit(img_size=16, patch_size=8, embed_dim=24, depth=1, num_heads=2, **keywords)

    found = SimpleNamespace(create_model=create_model)
    monkeypatch.setattr(timm_models, "require", lambda *_, **__: found)


@pytest.mark.usefixtures("_timm")
def test_a_model_of_timm_is_an_encoder() -> None:
    torch.manual_seed(0)
    encoder = models.create("timm:vit_of_timm", qkv_bias=False)
    assert encoder.num_features == 24
    assert encoder(torch.randn(2, 3, 16, 16)).shape == (2, 24)
    assert not any("qkv.bias" in name for name in encoder.state_dict())
    method = methods.create("simclr", encoder, out_dim=8)
    views = torch.randn(2, 4, 3, 16, 16)
    method(Batch(tuple(views), torch.arange(4)), Context(0, 0, 1))["loss"].backward()
    assert encoder.patch_embed.proj.weight.grad is not None


@pytest.mark.usefixtures("_timm")
def test_what_timm_refuses_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"timm:nothing: timm cannot build it: Unknown model"):
        models.create("timm:nothing")
    with pytest.raises(ValueError, match=r"timm:vit_of_timm: timm cannot build it: .*widht"):
        models.create("timm:vit_of_timm", widht=3)
    with pytest.raises(ValueError, match="without num_classes"):
        models.create("timm:vit_of_timm", num_classes=3)


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(MissingExtra, match=r"timm:resnet18 needs .* pip install 'sslfast\[timm\]'"):
        models.create("timm:resnet18")
