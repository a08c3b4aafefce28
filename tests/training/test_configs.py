"""configs/: a step of every file is trained for real, with small models on small images."""

from pathlib import Path
from typing import Any

import pytest
from tokens import needed, toy_tokenizer

import sslfast
from sslfast import methods
from sslfast.data import recipe
from sslfast.data.views.view import LOCAL
from sslfast.tokenizers import tokenizer_bytes
from sslfast.training.config import TrainConfig, read_yaml

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FILES = sorted(CONFIGS.glob("*/*.yaml"))


def scaled_down(settings: dict[str, Any], folder: Path, out: Path) -> dict[str, Any]:
    """The settings of a paper's run, with what makes it long or large changed."""
    small = needed(settings["method"])
    if "tokenizer" in small:
        small["tokenizer"] = str(out / "tokenizer.safetensors")
        Path(small["tokenizer"]).write_bytes(tokenizer_bytes(toy_tokenizer()))
    if "teacher" in small:
        teacher = {"data": str(folder), "out": str(out / "teacher"), "steps": 1, "batch_size": 4}
        run = sslfast.train({**teacher, "model_args": {"width": 8}, "image_size": 16})
        small["teacher"] = str(run / "encoder.safetensors")
    model_args = dict(settings.get("model_args", {}))
    if settings.get("model", "").startswith("vit"):
        model_args |= {"img_size": 16, "patch_size": 4, "embed_dim": 64, "depth": 1, "num_heads": 2}
    if settings.get("model", "").startswith("resnet"):
        settings = {**settings, "model": "resnet18"}
    if any(group.name == LOCAL for group in recipe(settings.get("recipe", "mae")).groups):
        same = settings.get("local_size") == settings.get("image_size", 0)
        settings = {**settings, "local_size": 16 if same else 8}
    known = {"decoder_dim", "decoder_depth", "predictor_depth", "predictor_dim"}
    fewer = {k: 1 if "depth" in k else 48 for k in known & settings.get("method_args", {}).keys()}
    return {
        **settings,
        **{"data": str(folder), "out": str(out / "run"), "device": "cpu", "threads": 1},
        **{"batch_size": 4, "image_size": 16, "epochs": None, "steps": 1, "log_every": 1},
        **{"model_args": model_args, "warmup_epochs": 0},
        # In bf16, torch's convolutions of 1 x 1 images now and then have gradients of NaN on CPUs.
        "precision": "fp32",
        "method_args": {**settings.get("method_args", {}), **fewer, **small},
    }


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_every_configuration_trains(
    file: Path, image_folder: Path, video_folder: Path, tmp_path: Path
) -> None:
    settings = read_yaml(file)
    videos = "video" in methods.get(settings["method"]).modalities
    assert settings["method"] == file.parent.name
    # As it stands, but for what its user gives.
    given = {"data": "somewhere", "out": "somewhere", **settings}
    config = TrainConfig.from_dict(given)
    builtin = "builtin:clips" if videos else "builtin:photos"
    assert config.data == (builtin if file.stem == "small" else "somewhere")
    folder = video_folder if videos else image_folder
    run = sslfast.train(scaled_down(settings, folder, tmp_path))
    assert sslfast.load_encoder(run).num_features > 0
