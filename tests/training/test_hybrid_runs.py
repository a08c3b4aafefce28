"""RotNet, VSSL, GCMAE, hybrid and distillation through the real trainer."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toys import whole_and_resumed

import sslfast
from sslfast import models
from sslfast.methods.base import Context
from sslfast.methods.distill import Distill
from sslfast.methods.gcmae import GCMAE
from sslfast.methods.hybrid import Hybrid
from sslfast.methods.vssl import VSSL
from sslfast.training.config import ConfigError
from sslfast.training.encoder import save_encoder
from sslfast.training.evaluation import FinishedRun, embed


def test_the_variance_is_kept_and_written_for_every_image(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by a run that was cut off and resumed."""
    settings |= {"method": "vssl", "method_args": {"hidden_dim": 16, "out_dim": 8}}
    settings |= {"out": str(tmp_path)}
    whole, cut, _ = whole_and_resumed(settings, VSSL, monkeypatch, cut_at=6)
    run = cut.path
    heads = [sslfast.load_heads(path)["uncertainty"] for path in (run, run / "heads.safetensors")]
    assert (run / "heads.safetensors").read_bytes() == (
        whole.path / "heads.safetensors"
    ).read_bytes()
    written = np.load(embed(FinishedRun.open(run, "cpu", 1), split="test"))
    features = torch.from_numpy(written["features"])
    with torch.no_grad():
        expected = heads[0](features)
    assert not heads[0].training
    assert expected.shape == (16, 8)
    assert torch.equal(expected, heads[1](features))
    assert written["uncertainty"].dtype == np.float32
    np.testing.assert_allclose(written["uncertainty"], expected.mean(1), rtol=1e-6)
    assert expected.min() > 0.01  # the floor
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["kl"] >= 0
    assert {"log_sigma", "similarity"} <= set(last)


VIT = {
    **{"model": "vit_micro", "recipe": "mae"},
    "model_args": {"img_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2},
}


def test_a_bank_goes_on_where_it_was(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two epochs and a half of 64 images, so that rows are used: cut off in the second."""
    settings |= {**VIT, "method": "gcmae", "out": str(tmp_path)}
    settings["method_args"] = {"decoder_depth": 1, "bank_size": 64}
    whole, cut, end = whole_and_resumed(settings, GCMAE, monkeypatch, cut_at=6)
    assert sorted(end["model"]["owners"].tolist()) == list(range(64))
    lines = [(run.path / "metrics.jsonl").read_text().splitlines() for run in (whole, cut)]
    known = [json.loads(line)["known"] for line in lines[0]]
    assert known[0] == 0
    assert known[-1] == 1
    losses = [[json.loads(line)["contrast"] for line in run] for run in lines]
    assert losses[0] == losses[1]


def test_two_masks_are_drawn_again_after_a_resume(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings |= {**VIT, "method": "hybrid", "out": str(tmp_path)}
    settings["method_args"] = {"decoder_depth": 1, "contrast_weight": 0.5}
    whole_and_resumed(settings, Hybrid, monkeypatch, cut_at=6)


def teacher(path: Path, seed: int = 0) -> None:
    torch.manual_seed(seed)
    said = {"model": "convnet_small", "model_args": {"width": 12, "depth": 2}, "image_size": 16}
    module = models.create(said["model"], **said["model_args"])
    save_encoder(path, module.state_dict(), said)


def test_a_run_keeps_its_teacher_and_no_checkpoint_does(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "teacher.safetensors"
    teacher(path)
    settings |= {"method": "distill", "recipe": "mae", "method_args": {"teacher": str(path)}}
    settings |= {"out": str(tmp_path)}

    def before_step(self: Distill, ctx: Context) -> None:
        """Another file is in its place while the second run is cut off and resumed."""
        if ctx.step in (3, 9):
            teacher(path, seed=1 if ctx.step == 3 else 0)

    monkeypatch.setattr(Distill, "before_step", before_step)
    runs = whole_and_resumed(settings, Distill, monkeypatch, cut_at=6)
    assert {name.partition(".")[0] for name in runs[2]["model"]} == {"encoder", "projector"}
    assert not any("frozen" in name for name in runs[2]["ranks"][0]["buffers"])
    width = sslfast.load_encoder(runs[0].path).num_features
    assert runs[2]["model"]["projector.0.weight"].shape == (24, width)
    path.unlink()  # a finished run needs its own copy only
    assert FinishedRun.open(sslfast.train({**settings, "out": str(runs[1].path)}), "cpu", 1)


def test_wrong_views_and_teachers_are_refused_before_anything_is_written(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    for method, keywords, error, says in (
        ("distill", {}, ConfigError, "method: distill needs a teacher: set method_args.teacher"),
        (
            "distill",
            {"teacher": str(tmp_path / "no")},
            ConfigError,
            "method_args.teacher must be the",
        ),
        ("gcmae", {}, ConfigError, "GCMAE needs a VisionTransformer as its encoder"),
        ("rotnet", {}, ConfigError, "makes 2 views of a sample, and rotnet learns from 1"),
    ):
        with pytest.raises(error, match=says):
            sslfast.train({**settings, "method": method, "method_args": keywords, "out": str(out)})
    changes = {**VIT, "method": "hybrid", "method_args": {"temperature": 0.0}, "out": str(out)}
    with pytest.raises(ConfigError, match=r"method_args.temperature must be more than 0"):
        sslfast.train({**settings, **changes})
    assert not out.exists()
