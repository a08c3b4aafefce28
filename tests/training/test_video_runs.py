"""VideoMAE through the real trainer, and from the command line: from files to the probe."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from toys import entries

import sslfast
from sslfast.cli import main
from sslfast.methods.videomae import VideoMAE
from sslfast.training import TrainConfig
from sslfast.training.config import ConfigError
from sslfast.training.run_folder import RunFolder


@pytest.fixture
def settings(video_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("SSLFAST_CACHE", str(tmp_path / "cache"))
    shape = {"img_size": 16, "embed_dim": 32, "depth": 1, "num_heads": 2, "num_frames": 4}
    return {
        **{"method": "videomae", "data": str(video_folder), "model": "vit_micro"},
        **{"model_args": shape, "method_args": {"decoder_depth": 1}, "image_size": 16},
        **{"recipe_args": {"num_frames": 4, "sampling_rate": 2}, "steps": 6, "batch_size": 8},
        **{"device": "cpu", "threads": 2, "log_every": 1, "checkpoint_every": 2, "lr": 0.003},
    }


def words(settings: dict[str, Any]) -> list[str]:
    return [
        word
        for name, value in settings.items()
        for word in (f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value))
    ]


def test_everything_from_the_command_line(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path / "run")
    assert main(["train", *words(settings | {"steps": 2}), "--out", run]) == 0
    encoder = sslfast.load_encoder(run)
    assert encoder(torch.randn(2, 3, 4, 16, 16)).shape == (2, 32)
    common = ["--run", run, "--threads", "1", "--device", "cpu"]
    assert main(["eval", "linear", *common]) == 0
    found = json.loads((tmp_path / "run" / "eval_linear.json").read_text())
    assert (found["n_test"], found["n_classes"]) == (8, 2)
    assert 0 <= found["accuracy"] <= 1
    assert main(["eval", "knn", *common, "--k", "3"]) == 0
    assert main(["embed", *common, "--split", "test", "--out", str(tmp_path / "f.npz")]) == 0
    with np.load(tmp_path / "f.npz") as file:
        assert file["features"].shape == (8, 32)
        assert file["paths"][0].endswith("test/left/00.mp4")
    assert main(["report", *common, "--k", "3"]) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert [score["features"] for score in report["scores"][:2]] == [
        "random initialisation",
        "pre-trained",
    ]
    sizes = {}
    for samples in ("1", "3"):
        png = str(tmp_path / f"{samples}.png")
        assert main(["preview", *common, "--png", png, "--samples", samples]) == 0
        with Image.open(png) as picture:
            sizes[samples] = picture.size
    assert sizes["3"][0] == sizes["1"][0] > 100
    assert sizes["3"][1] > 2 * sizes["1"][1]  # three rows of frames for each video
    assert main(["preview", *words(settings), "--png", str(tmp_path / "views.png")]) == 0
    capsys.readouterr()
    assert main(["eval", "knn", *common, "--data", "builtin:mnist"]) == 1
    assert "no videos in" in capsys.readouterr().err


def test_an_interrupted_run_ends_in_the_same_bits(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(name: str) -> RunFolder:
        config = {**settings, "out": str(tmp_path / name)}
        return RunFolder(sslfast.train(TrainConfig.from_dict(config)))

    class Stop(Exception):
        pass

    def stop(self: VideoMAE, ctx: Any) -> None:
        if ctx.step == 4:
            raise Stop

    undisturbed = run("a")
    with monkeypatch.context() as patch:
        patch.setattr(VideoMAE, "after_step", stop)
        with pytest.raises(Stop):
            run("b")
    resumed = run("b")
    assert entries(undisturbed) == entries(resumed)
    assert undisturbed.encoder.read_bytes() == resumed.encoder.read_bytes()
    losses = [entry["loss"] for entry in entries(resumed)]
    assert len(losses) == 6
    assert len(set(losses)) == 6


def test_kinds_of_data_that_do_not_fit_are_refused(
    settings: dict[str, Any], image_folder: Path, tmp_path: Path
) -> None:
    images = {"method": "simclr", "model": "convnet_small", "model_args": {}, "method_args": {}}
    for changes, message in (
        ({"data": str(image_folder)}, r"no videos in .*It holds 64 images"),
        ({"recipe": "mae", "recipe_args": {}}, "videomae learns from videos: choose another"),
        ({"model_args": {"img_size": 16}}, "learns from videos.*build the encoder with num_frames"),
        ({**images, "recipe_args": {}}, r"no images in .*It holds 16 videos: for these, choose"),
        ({**images, "recipe": "simclr_small"}, "simclr learns from images: choose another recipe"),
    ):
        config = {**settings, **changes, "out": str(tmp_path / "run")}
        with pytest.raises((ConfigError, ValueError), match=message):
            sslfast.train(TrainConfig.from_dict(config))
        assert not (tmp_path / "run").exists()
