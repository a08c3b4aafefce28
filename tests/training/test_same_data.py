"""A run goes on with the files that it began with, wherever these are, and with no others."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import sslfast
from sslfast.data import open_dataset
from sslfast.training import TrainConfig, checkpoint
from sslfast.training.config import ConfigError
from sslfast.training.evaluation import FinishedRun


def train(settings: dict[str, Any], data: Path | str, out: Path, steps: int) -> None:
    sslfast.train(
        TrainConfig.from_dict(settings | {"data": str(data), "out": str(out), "steps": steps})
    )


def test_files_that_changed_are_named_and_a_moved_folder_goes_on(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, whole, out = tmp_path / "data", tmp_path / "whole", tmp_path / "run"
    shutil.copytree(open_dataset(settings["data"]).folder or "", first)
    monkeypatch.chdir(tmp_path)
    train(settings, "data", out, 1)
    train(settings, "data", whole, 2)

    # Read from anywhere.
    monkeypatch.chdir(out)
    assert FinishedRun.open(out, "cpu").settings["data"] == str(first)

    a, b = (Path(path) for path in open_dataset(str(first)).paths[3:5])
    a.rename(a.with_stem("other"))
    with pytest.raises(ConfigError, match=rf"1 file is gone .*{a.name}.*1 file is new .*other"):
        train(settings, first, out, 2)
    a.with_stem("other").rename(a)
    a.write_bytes(a.read_bytes() + b"\0")
    with pytest.raises(ConfigError, match=rf"1 file is of another size .*{a.name}"):
        train(settings, first, out, 2)
    a.write_bytes(a.read_bytes()[:-1])
    b.unlink()
    content = (out / "data.json.gz").read_bytes()
    (out / "data.json.gz").write_bytes(b"damaged")
    count = len(open_dataset(str(first)).paths)
    with pytest.raises(ConfigError, match=rf"were {count + 1} samples, and now {count}, of other"):
        train(settings, first, out, 2)
    (out / "data.json.gz").write_bytes(content)

    shutil.copytree(open_dataset(settings["data"]).folder or "", tmp_path / "moved")
    shutil.rmtree(first)
    train(settings, "../moved", out, 2)
    assert FinishedRun.open(out, "cpu").settings["data"] == str(tmp_path / "moved")
    pair = [checkpoint.load_newest(run / "checkpoints") for run in (out, whole)]
    for name, tensor in pair[0]["model"].items():
        assert torch.equal(tensor, pair[1]["model"][name])
