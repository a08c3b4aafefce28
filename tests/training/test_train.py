"""Whole runs through the real loader, in this process and in others."""

import errno
import json
import logging
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from toys import entries

import sslfast
from sslfast._nests import map_tensors
from sslfast.training import checkpoint
from sslfast.training.config import ConfigError
from sslfast.training.run_folder import RunFolder


def train(settings: dict[str, Any], out: Path, **changes: Any) -> RunFolder:
    return RunFolder(sslfast.train({**settings, "out": str(out), **changes}))


def final_state(run: RunFolder) -> dict[str, Any]:
    state = checkpoint.load_newest(run.checkpoints)
    assert state is not None
    return state


def bits(state: dict[str, Any]) -> dict[str, Any]:
    """Everything in a checkpoint but its place, as plain values."""
    kept = {key: value for key, value in state.items() if key not in ("path", "config")}
    return map_tensors(kept, Tensor.tolist)


def test_a_run_leaves_what_it_promises(settings: dict[str, Any], tmp_path: Path) -> None:
    run = train(settings, tmp_path / "run", warmup_epochs=0.5)
    logged = entries(run)
    assert [entry["step"] for entry in logged] == [2, 4, 6, 8, 10]
    assert set(logged[0]) >= {"epoch", "loss", "positive_similarity", "lr", "grad_norm"}
    raw = json.loads(run.metrics.read_text().splitlines()[-1])
    assert raw["images_per_second"] > 0
    assert 0 <= raw["data_wait"] <= 1

    encoder = sslfast.load_encoder(run.path)
    assert encoder(torch.randn(2, 3, 16, 16)).shape == (2, encoder.num_features)
    for name, tensor in final_state(run)["model"].items():
        if name.startswith("encoder."):
            assert torch.equal(encoder.state_dict()[name.removeprefix("encoder.")], tensor)


def test_a_finished_run_says_so(
    settings: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = train(settings, tmp_path / "run")
    before = run.encoder.read_bytes(), run.metrics.read_bytes()
    with caplog.at_level(logging.INFO, "sslfast"):
        train(settings, tmp_path / "run")
    assert "nothing left to do" in caplog.text
    assert (run.encoder.read_bytes(), run.metrics.read_bytes()) == before
    assert "the encoder is in" not in caplog.text
    # As if killed between the last checkpoint and the end, and as the disk may leave a file.
    run.encoder.unlink()
    train(settings, tmp_path / "run")
    assert run.encoder.read_bytes() == before[0]
    run.encoder.write_bytes(before[0][:-1])
    train(settings, tmp_path / "run")
    assert run.encoder.read_bytes() == before[0]


def test_an_encoder_behind_its_checkpoints_is_named_and_caught_up(
    settings: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = train(settings, tmp_path / "run", steps=2)
    sslfast.load_encoder(run.path)
    assert "newest checkpoint" not in caplog.text
    old = run.encoder.read_bytes()
    longer = train(settings, tmp_path / "run", steps=3)
    new = longer.encoder.read_bytes()
    run.encoder.write_bytes(old)  # as if killed before the encoder was written
    sslfast.load_encoder(run.path)
    assert "it is of step 2, and the newest checkpoint of step 3. To bring it up" in caplog.text
    caplog.clear()
    train(settings, tmp_path / "other", steps=1, init=str(run.path))
    assert "it is of step 2, and the newest checkpoint of step 3" in caplog.text
    train(settings, tmp_path / "run", steps=3)
    assert run.encoder.read_bytes() == new

    # Of the same step, but of another run.
    shutil.copytree(train(settings, tmp_path / "third", steps=3, seed=1).path, tmp_path / "fourth")
    shutil.copy(run.encoder, tmp_path / "fourth")
    caplog.clear()
    sslfast.load_encoder(tmp_path / "fourth")
    assert "it has other weights than the checkpoint of its step" in caplog.text


def test_init_starts_from_another_run(settings: dict[str, Any], tmp_path: Path) -> None:
    first = train(settings, tmp_path / "a")
    tuned = train(settings, tmp_path / "b", init=str(first.path), steps=1, lr=0.0)
    weights = sslfast.load_encoder(first.path).state_dict()
    for name, tensor in sslfast.load_encoder(tuned.path).state_dict().items():
        if "running" not in name and "tracked" not in name:
            assert torch.equal(tensor, weights[name])


def test_wrong_settings_leave_no_folder(settings: dict[str, Any], tmp_path: Path) -> None:
    wrong = [
        ({"method": "simcrl"}, ConfigError, "Did you mean 'simclr'"),
        ({"method_args": {"tau": 1}}, ConfigError, "no hyperparameter 'tau'"),
        ({"recipe": "simclrr"}, ConfigError, "Did you mean 'simclr'"),
        ({"recipe_args": {"crop": [0.1, 1]}}, ConfigError, "no field 'crop'"),
        ({"recipe_args": {"flip": 2}}, ConfigError, "^recipe_args.flip must be at most 1, got 2"),
        ({"recipe": "mae"}, ConfigError, "makes 1 views of a sample, and simclr learns from 2"),
        ({"model_args": {"width": 0}}, ConfigError, "^model_args.width must be at least 1, got 0"),
        ({"method_args": {"hidden_dim": 0}}, ConfigError, "^method_args.hidden_dim must be at lea"),
        ({"accumulate": 16}, ConfigError, "compares images, and its loss would see one at a time"),
        ({"contrastive_batch": 1, "accumulate": 16}, ConfigError, "would see one at a time"),
        ({"data": str(tmp_path / "none")}, FileNotFoundError, "no such folder"),
        ({"batch_size": 512}, ValueError, "fewer than one global batch"),
    ]
    for changes, error, message in wrong:
        with pytest.raises(error, match=message):
            train(settings, tmp_path / "run", **changes)
        assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="a TrainConfig, or a dict of settings, got str"):
        sslfast.train("run.yaml")


def test_a_full_cache_is_not_reported_as_the_runs_disk(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "no room for sslfast's cache", "cache")

    monkeypatch.setattr("sslfast.data.open_dataset", full)
    with pytest.raises(OSError, match=r"no room for sslfast's cache: 'cache'"):
        train(settings, tmp_path / "run")


KILLED = """
import json, os, signal, sys
from sslfast.methods.simclr import SimCLR
from sslfast.training import TrainConfig, train

def after_step(self, ctx):
    if ctx.step == 6:
        os.kill(os.getpid(), signal.SIGKILL)

SimCLR.after_step = after_step
train(TrainConfig.from_dict(json.loads(sys.argv[1])))
"""


def test_a_killed_run_resumes_to_the_same_bits(settings: dict[str, Any], tmp_path: Path) -> None:
    # Four steps an epoch: killed in step 7, resumed from the end of the first epoch.
    undisturbed = train(settings, tmp_path / "a")
    line = json.dumps({**settings, "out": str(tmp_path / "b")})
    killed = subprocess.run([sys.executable, "-c", KILLED, line], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "b" / "encoder.safetensors").exists()

    resumed = train(settings, tmp_path / "b")
    assert entries(resumed) == entries(undisturbed)
    assert bits(final_state(resumed)) == bits(final_state(undisturbed))
    assert resumed.encoder.read_bytes() == undisturbed.encoder.read_bytes()
