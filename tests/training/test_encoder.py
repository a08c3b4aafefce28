import copy
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from sslfast import data, models
from sslfast.training.config import ConfigError
from sslfast.training.encoder import (
    build_encoder,
    load_encoder,
    read_description,
    save_encoder,
)
from sslfast.training.evaluation import FinishedRun
from sslfast.training.run_folder import RunFolder
from sslfast.training.weights import load_weights

DESCRIPTION = {"model": "convnet_small", "model_args": {"width": 8}, "method": "simclr"}

CPU = torch.device("cpu")


IMAGES = {"image_size": 16, "mean": (0.1, 0.5, 0.7), "std": (0.2, 0.3, 0.4), "num_frames": None}


def encoder(seed: int = 0) -> nn.Module:
    built = build_encoder("convnet_small", {"width": 8}, seed)
    built(torch.randn(4, 3, 32, 32))  # so that running statistics are not the initial ones
    return built


def test_round_trip(tmp_path: Path) -> None:
    original = encoder()
    save_encoder(tmp_path / "encoder.safetensors", original.state_dict(), DESCRIPTION)
    images = torch.randn(2, 3, 32, 32)
    for path in (tmp_path, tmp_path / "encoder.safetensors"):
        loaded = load_encoder(path)
        assert not loaded.training
        assert loaded.num_features == original.num_features
        assert torch.equal(loaded(images), original.eval()(images))
    assert read_description(tmp_path)["method"] == "simclr"


def test_a_loaded_encoder_knows_its_inputs(tmp_path: Path) -> None:
    """Features by hand are those of ``sslfast eval``."""
    random = np.random.default_rng()
    for i, size in enumerate([(16, 16), (31, 20), (9, 40)]):
        Image.fromarray(random.integers(0, 256, (*size, 3), np.uint8)).save(tmp_path / f"{i}.png")
    original = encoder()
    save_encoder(tmp_path / "encoder.safetensors", original.state_dict(), DESCRIPTION | IMAGES)
    description = read_description(tmp_path)
    run = FinishedRun(
        RunFolder(tmp_path), tmp_path / "encoder.safetensors", description, {}, CPU, threads=1
    )
    images = data.open_dataset(str(tmp_path), cache_dir=str(tmp_path))
    expected = run.features(run.encoder(), images).features

    loaded = load_encoder(tmp_path)
    assert (loaded.mean, loaded.std, loaded.image_size) == (IMAGES["mean"], IMAGES["std"], 16)
    assert loaded.state_dict().keys() == original.state_dict().keys()
    stored = io.BytesIO()
    torch.save(loaded, stored)
    stored.seek(0)
    copies = copy.deepcopy(loaded), torch.load(stored, weights_only=False)
    for module in (loaded, *copies):
        with torch.inference_mode():
            features = module(module.preprocess([Image.open(path) for path in images.paths]))
        torch.testing.assert_close(features, expected, rtol=1e-3, atol=1e-3)


def test_an_encoder_of_other_data_loads_and_says_what_eval_cannot(tmp_path: Path) -> None:
    said = {"image_size": None, "mean": None}
    save_encoder(tmp_path / "encoder.safetensors", encoder().state_dict(), DESCRIPTION | said)
    assert load_encoder(tmp_path).preprocess is None
    run = FinishedRun(
        RunFolder(tmp_path), tmp_path / "encoder.safetensors", read_description(tmp_path), {}, CPU
    )
    with pytest.raises(ValueError, match=r"safetensors does not say .* \(image_size, mean, std"):
        run.dataset(str(tmp_path), "train")


def test_halves_are_stored_in_float32(tmp_path: Path) -> None:
    half = encoder().bfloat16().to(memory_format=torch.channels_last)
    save_encoder(tmp_path / "encoder.safetensors", half.state_dict(), DESCRIPTION)
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
    with pytest.raises(ValueError, match=r"schema_version 2, but .* a newer one. Upgrade"):
        load_encoder(foreign)


def test_one_flipped_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    save_encoder(path, encoder().state_dict(), DESCRIPTION | IMAGES)
    whole = path.read_bytes()
    weights = 8 + int.from_bytes(whole[:8], "little")  # where they begin
    drawn = np.random.default_rng().integers(weights, len(whole), 3)
    places = [whole.index(b"0.7"), whole.index(b"sha256") + len(r"sha256\": \""), *drawn]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"{path} is damaged: its checksum differs"):
            load_encoder(path)
        with pytest.raises(ConfigError, match=rf"init: {path} is damaged: its checksum differs"):
            load_weights(encoder(), tmp_path)
    path.write_bytes(whole)
    load_encoder(path)


def test_a_file_that_contradicts_itself_is_named(tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    for changes, message in (
        ({"model": "mine"}, "unknown encoder 'mine'"),
        ({"model_args": {"width": 4}}, "size mismatch"),
        ({"model_args": 3}, "mapping"),
    ):
        save_encoder(path, encoder().state_dict(), DESCRIPTION | changes)
        with pytest.raises(ValueError, match=rf"encoder in {path} cannot be .*{message}") as caught:
            load_encoder(path)
        assert "\n" not in str(caught.value)
    save_file({"weight": torch.zeros(2)}, path, {"sslfast": "{"})
    with pytest.raises(ValueError, match=rf"{path} is damaged: its description"):
        read_description(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_released_weights_may_have_more_but_not_less(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"released{suffix}"
    released = models.create("resnet18", num_classes=10).state_dict()
    save_file(released, path) if suffix == ".safetensors" else torch.save(released, path)
    target = models.create("resnet18")
    assert load_weights(target, path) == ["fc.bias", "fc.weight"]
    assert torch.equal(target.layer4[1].conv2.weight, released["layer4.1.conv2.weight"])

    with pytest.raises(ConfigError, match=r"'conv1.weight' has shape \(64, 3, 7, 7\), and the"):
        load_weights(models.create("resnet18", cifar_stem=True), path)
    with pytest.raises(ConfigError, match=r"none of the model's .* tensors by name .stages"):
        load_weights(models.create("convnet_small"), path)
    with pytest.raises(ConfigError, match=r"init: there is no .*nothing.pt"):
        load_weights(target, tmp_path / "nothing.pt")


def test_unknown_models_are_explained() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'resnet18'"):
        build_encoder("resnet19", {}, 0)
    with pytest.raises(ConfigError, match="Did you mean 'width'"):
        build_encoder("convnet_small", {"widht": 3}, 0)
