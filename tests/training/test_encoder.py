import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sslfast import models
from sslfast.training.config import ConfigError
from sslfast.training.encoder import (
    build_encoder,
    load_encoder,
    load_weights,
    read_description,
    save_encoder,
)

DESCRIPTION = {"model": "convnet_small", "model_args": {"width": 8}, "method": "simclr"}


def encoder(seed: int = 0) -> nn.Module:
    built = build_encoder("convnet_small", {"width": 8}, seed)
    built(torch.randn(4, 3, 32, 32))  # so that running statistics are not the initial ones
    return built


def test_round_trip(tmp_path: Path) -> None:
    original = encoder()
    save_encoder(tmp_path / "encoder.safetensors", original, DESCRIPTION)
    images = torch.randn(2, 3, 32, 32)
    for path in (tmp_path, tmp_path / "encoder.safetensors"):
        loaded = load_encoder(path)
        assert not loaded.training
        assert loaded.num_features == original.num_features
        assert torch.equal(loaded(images), original.eval()(images))
    assert read_description(tmp_path)["method"] == "simclr"


def test_halves_are_stored_in_float32(tmp_path: Path) -> None:
    half = encoder().bfloat16().to(memory_format=torch.channels_last)
    save_encoder(tmp_path / "encoder.safetensors", half, DESCRIPTION)
    loaded = load_encoder(tmp_path)
    for name, tensor in loaded.state_dict().items():
        expected = half.state_dict()[name]
        assert tensor.dtype == (torch.float32 if expected.is_floating_point() else torch.int64)
        assert torch.equal(tensor, expected.to(tensor.dtype))


def test_the_seed_alone_decides_the_initial_weights() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = build_encoder("resnet18", {"cifar_stem": True}, 3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    second = build_encoder("resnet18", {"cifar_stem": True}, 3)
    other = build_encoder("resnet18", {"cifar_stem": True}, 4)
    assert torch.equal(first.conv1.weight, second.conv1.weight)
    assert not torch.equal(first.conv1.weight, other.conv1.weight)


def test_missing_and_foreign_files_are_explained(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no encoder at .*did the run finish"):
        load_encoder(tmp_path)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(2)}, foreign)
    with pytest.raises(ValueError, match="was not written by sslfast"):
        load_encoder(foreign)
    foreign.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"damaged or no \.safetensors file"):
        load_encoder(foreign)
    newer = {"sslfast": json.dumps({"schema_version": 2})}
    save_file({"weight": torch.zeros(2)}, foreign, newer)
    with pytest.raises(ValueError, match="written by a newer sslfast"):
        load_encoder(foreign)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_released_weights_may_have_more_but_not_less(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"released{suffix}"
    released = models.create("resnet18", num_classes=10).state_dict()
    save_file(released, path) if suffix == ".safetensors" else torch.save(released, path)
    target = models.create("resnet18")
    assert load_weights(target, path) == ["fc.bias", "fc.weight"]
    assert torch.equal(target.layer4[1].conv2.weight, released["layer4.1.conv2.weight"])

    with pytest.raises(ConfigError, match=r"'conv1.weight' has shape \(64, 3, 7, 7\) in"):
        load_weights(models.create("resnet18", cifar_stem=True), path)
    with pytest.raises(ConfigError, match="no tensor 'stages"):
        load_weights(models.create("convnet_small"), path)
    with pytest.raises(ConfigError, match=r"init: there is no .*nothing.pt"):
        load_weights(target, tmp_path / "nothing.pt")


def test_unknown_models_are_explained() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'resnet18'"):
        build_encoder("resnet19", {}, 0)
    with pytest.raises(ConfigError, match="Did you mean 'width'"):
        build_encoder("convnet_small", {"widht": 3}, 0)
