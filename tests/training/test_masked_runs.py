"""Masked methods through the real trainer, and from the command line."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tokens import toy_tokenizer
from toys import entries

import sslfast
from sslfast.cli import main
from sslfast.models.positions import resize_positions
from sslfast.tokenizers import load_tokenizer, tokenizer_bytes
from sslfast.training import TrainConfig, checkpoint
from sslfast.training.config import ConfigError
from sslfast.training.evaluation import FinishedRun
from sslfast.training.report import preview_run
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


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    """A tokenizer's file for those settings."""
    path = tmp_path / "tokens.safetensors"
    path.write_bytes(tokenizer_bytes(toy_tokenizer()))
    return path


KILLED = """
import json, os, signal, sys
from sslfast import methods
from sslfast.training import TrainConfig, train

config = TrainConfig.from_dict(json.loads(sys.argv[1]))
method = methods.get(config.method)
follow = method.after_step

def after_step(self, ctx):
    follow(self, ctx)
    if ctx.step == 6:
        os.kill(os.getpid(), signal.SIGKILL)

method.after_step = after_step
train(config)
"""


def kill(settings: dict[str, Any]) -> None:
    """Train in another process, which dies in the seventh step."""
    line = json.dumps(settings)
    killed = subprocess.run([sys.executable, "-c", KILLED, line], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr


def same_end(first: RunFolder, second: RunFolder) -> dict[str, Any]:
    """The last state of two runs, which must be the same to the bit."""
    assert entries(first) == entries(second)
    states = [checkpoint.load_newest(run.checkpoints) for run in (first, second)]
    assert states[0] is not None
    assert states[1] is not None
    for name, tensor in states[0]["model"].items():
        assert torch.equal(tensor, states[1]["model"][name]), name
    assert first.encoder.read_bytes() == second.encoder.read_bytes()
    return states[1]


def test_a_killed_run_draws_the_same_masks_and_ends_in_the_same_bits(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    settings |= {"method": "ijepa", "method_args": {"predictor_depth": 1, "momentum": 0.9}}
    kill({**settings, "out": str(tmp_path / "b")})
    runs = [
        RunFolder(sslfast.train(TrainConfig.from_dict({**settings, "out": str(tmp_path / name)})))
        for name in ("a", "b")
    ]
    resumed = same_end(*runs)
    assert int(resumed["model"]["teacher.updates"]) == 10
    student, teacher = (
        resumed["model"][f"{place}.blocks.0.mlp.fc1.weight"]
        for place in ("encoder", "teacher.module")
    )
    assert not torch.equal(student, teacher)


def test_a_run_keeps_its_tokenizer(settings: dict[str, Any], tokens: Path, tmp_path: Path) -> None:
    settings |= {"method": "beit", "method_args": {"tokenizer": str(tokens)}}
    configs = [{**settings, "out": str(tmp_path / name)} for name in ("a", "b", "c")]
    whole = RunFolder(sslfast.train(TrainConfig.from_dict(configs[0])))
    kill(configs[1])
    shutil.copytree(tmp_path / "b", tmp_path / "c")
    tokens.write_bytes(tokenizer_bytes(toy_tokenizer(vocab_size=20)))
    same_end(whole, RunFolder(sslfast.train(TrainConfig.from_dict(configs[1]))))
    tokens.unlink()
    resumed = RunFolder(sslfast.train(TrainConfig.from_dict(configs[2])))
    assert same_end(whole, resumed)["model"]["tokenizer.codebook"].shape == (32, 48)
    run = FinishedRun.open(resumed.path, "cpu", 1)
    assert preview_run(run, tmp_path / "p.png", samples=2).is_file()
    earlier = str(checkpoint.listed(resumed.checkpoints)[0])
    branch = {**settings, "out": str(tmp_path / "e"), "resume": earlier}
    branched = RunFolder(sslfast.train(TrainConfig.from_dict(branch)))
    assert branched.encoder.read_bytes() == whole.encoder.read_bytes()
    assert branched.copies(["tokenizer"])
    with pytest.raises(FileNotFoundError, match="there is no tokenizer"):
        sslfast.train(TrainConfig.from_dict({**settings, "out": str(tmp_path / "d")}))


def test_a_run_without_a_checkpoint_takes_the_tokenizer_that_is_given(
    settings: dict[str, Any], tokens: Path, tmp_path: Path
) -> None:
    settings |= {"method": "beit", "method_args": {"tokenizer": str(tokens)}, "steps": 1}
    config = TrainConfig.from_dict({**settings, "out": str(tmp_path / "a")})
    run = RunFolder(sslfast.train(config))
    for path in run.checkpoints.iterdir():
        path.unlink()
    tokens.write_bytes(tokenizer_bytes(toy_tokenizer(vocab_size=20)))
    sslfast.train(config)
    state = checkpoint.load_newest(run.checkpoints)
    assert state is not None
    assert state["model"]["tokenizer.codebook"].shape == (20, 48)
    assert (run.path / "files" / "tokenizer").read_bytes() == tokens.read_bytes()


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


def test_tokens_of_pixels_then_of_features_from_the_command_line(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As HuBERT does: the first run's features make the second run's tokens."""
    data, common = str(settings["data"]), ["--threads", "1", "--device", "cpu"]
    words = ["--data", data, *common, "--image-size", "16", "--model", "vit_micro"]
    words += ["--model-args", json.dumps(settings["model_args"]), "--steps", "2"]
    words += ["--batch-size", "16", "--method", "beit", "--method-args.tokenizer"]
    runs = [str(tmp_path / name) for name in ("first", "second")]
    fit = ["tokenizer", "fit", "--data", data, "--vocab-size", "24", *common]
    sizes = ["--patch-size", "4", "--image-size", "16", "--images", "150"]
    for number, own in enumerate((sizes, ["--run", runs[0]])):
        tokens, png = (str(tmp_path / f"tokens {number}.{end}") for end in ("safetensors", "png"))
        assert main([*fit, *own, "--out", tokens, "--png", png]) == 0
        printed = capsys.readouterr().out
        assert "24 of 24" in printed
        assert f"--method-args.tokenizer '{tokens}'" in printed
        with Image.open(png) as picture:
            assert min(picture.size) > 100
        assert main(["train", *words, tokens, "--out", runs[number]]) == 0
        capsys.readouterr()
    first, second = (load_tokenizer(tmp_path / f"tokens {n}.safetensors") for n in range(2))
    assert (first.codebook.shape, second.codebook.shape) == ((24, 48), (24, 32))
    assert (first.spec.norm_pix, second.spec.norm_pix) == (True, False)
    assert first.spec.made["images"] == 150
    assert second.spec.model == "vit_micro"
    assert second.encoder is not None
    trained = sslfast.load_encoder(runs[0]).state_dict()
    assert all(torch.equal(t, trained[n]) for n, t in second.encoder.state_dict().items())
    again = str(tmp_path / "again.safetensors")
    assert main([*fit, *sizes, "--out", again]) == 0
    assert Path(again).read_bytes() == (tmp_path / "tokens 0.safetensors").read_bytes()


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
