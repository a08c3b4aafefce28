"""Masked methods through the real trainer, and from the command line."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from toys import entries

import sslfast
from sslfast.cli import main
from sslfast.models.positions import resize_positions
from sslfast.training import TrainConfig, checkpoint
from sslfast.training.config import ConfigError
from sslfast.training.run_folder import RunFolder


@pytest.fixture
def settings(image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("SSLFAST_CACHE", str(tmp_path / "cache"))
    return {
        **{"data": str(image_folder), "image_size": 16, "model": "vit_micro"},
        "model_args": {"img_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2},
        **{"steps": 10, "batch_size": 16, "lr": 0.003, "device": "cpu", "threads": 1},
        **{"log_every": 2, "checkpoint_every": 4},
    }


KILLED = """
import json, os, signal, sys
from sslfast.methods.ijepa import IJEPA
from sslfast.training import TrainConfig, train

follow = IJEPA.after_step

def after_step(self, ctx):
    follow(self, ctx)
    if ctx.step == 6:
        os.kill(os.getpid(), signal.SIGKILL)

IJEPA.after_step = after_step
train(TrainConfig.from_dict(json.loads(sys.argv[1])))
"""


def test_a_killed_run_draws_the_same_masks_and_ends_in_the_same_bits(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    settings |= {"method": "ijepa", "method_args": {"predictor_depth": 1, "momentum": 0.9}}
    line = json.dumps({**settings, "out": str(tmp_path / "b")})
    killed = subprocess.run([sys.executable, "-c", KILLED, line], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    runs = [
        RunFolder(sslfast.train(TrainConfig.from_dict({**settings, "out": str(tmp_path / name)})))
        for name in ("a", "b")
    ]
    assert entries(runs[0]) == entries(runs[1])
    undisturbed, resumed = (checkpoint.load_newest(run.checkpoints) for run in runs)
    assert undisturbed is not None
    assert resumed is not None
    for name, tensor in undisturbed["model"].items():
        assert torch.equal(tensor, resumed["model"][name]), name
    assert int(resumed["model"]["teacher.updates"]) == 10
    student, teacher = (
        resumed["model"][f"{place}.blocks.0.mlp.fc1.weight"]
        for place in ("encoder", "teacher.module")
    )
    assert not torch.equal(student, teacher)
    assert runs[0].encoder.read_bytes() == runs[1].encoder.read_bytes()


@pytest.mark.parametrize("method", ["mae", "simmim", "ijepa"])
def test_train_eval_and_preview_from_the_command_line(
    method: str, settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = []
    for name, value in (settings | {"steps": 3}).items():
        words += [f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value)]
    run = str(tmp_path / "run")
    assert main(["train", "--method", method, *words, "--out", run]) == 0
    encoder = sslfast.load_encoder(run)
    assert encoder(torch.randn(2, 3, 16, 16)).shape == (2, 32)
    common = ["--run", run, "--threads", "1", "--device", "cpu"]
    assert main(["eval", "linear", *common, "--labels-per-class", "10"]) == 0
    found = json.loads((tmp_path / "run" / "eval_linear.json").read_text())
    assert (found["n_labels"], found["n_test"], found["n_classes"]) == (20, 16, 2)
    assert found["accuracy"] > 0.8  # two colours
    png = str(tmp_path / "pictures.png")
    assert main(["preview", *common, "--png", png, "--samples", "4"]) == 0
    with Image.open(png) as picture:
        assert min(picture.size) > 100
    assert png in capsys.readouterr().out


def test_init_from_a_run_with_smaller_images(settings: dict[str, Any], tmp_path: Path) -> None:
    """All weights are the run's, positions are interpolated, and a teacher begins with them too."""
    settings |= {"steps": 1, "method_args": {"predictor_depth": 1}, "method": "ijepa"}
    settings["model_args"] |= {"pos_embed": "learn"}
    first = sslfast.train(TrainConfig.from_dict({**settings, "out": str(tmp_path / "a")}))
    settings |= {"init": str(first), "image_size": 24, "lr": 0.0}
    larger = {**settings, "model_args": settings["model_args"] | {"img_size": 24}}
    second = sslfast.train(TrainConfig.from_dict({**larger, "out": str(tmp_path / "b")}))
    old, new = (sslfast.load_encoder(run).state_dict() for run in (first, second))
    saved = checkpoint.load_newest(RunFolder(second).checkpoints)
    assert saved is not None
    for name, tensor in new.items():
        expected = old[name]
        if name == "pos_embed":
            expected = resize_positions(expected, (4, 4), (6, 6))
        assert torch.equal(tensor, expected), name
        torch.testing.assert_close(saved["model"][f"teacher.module.{name}"], tensor)

    tokens = settings["model_args"] | {"class_token": True}
    fewer = {**settings, "image_size": 16, "model_args": tokens}
    with pytest.raises(
        ConfigError, match=r"init: .*16 positions are no square grid.* behind 1 tok"
    ):
        sslfast.train(TrainConfig.from_dict({**fewer, "out": str(tmp_path / "c")}))


def test_encoders_that_do_not_fit_are_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    config = {**settings, "method": "mae", "model": "convnet_small", "model_args": {}}
    with pytest.raises(ConfigError, match="MAE needs a VisionTransformer"):
        sslfast.train(TrainConfig.from_dict({**config, "out": str(tmp_path / "run")}))
    assert not (tmp_path / "run").exists()
    config = {**settings, "method": "mae", "image_size": 24}
    with pytest.raises(
        ConfigError, match=r"images of \[16, 16\], got \[24, 24\]: resize .* image_s"
    ):
        sslfast.train(TrainConfig.from_dict({**config, "out": str(tmp_path / "run")}))
    assert not (tmp_path / "run").exists()
