"""Runs of the methods that compare two views: resumed exactly, and too small a batch refused."""

from pathlib import Path
from typing import Any

import pytest
from tokens import needed
from toys import whole_and_resumed

import sslfast
from sslfast import methods
from sslfast.training import TrainConfig
from sslfast.training.config import ConfigError

METHODS = ("barlow_twins", "byol", "lejepa", "mocov2", "mocov3", "simsiam", "vicreg")


@pytest.mark.parametrize("name", METHODS)
def test_runs_are_resumed_exactly(
    name: str, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"method": name, "method_args": needed(name), "steps": 8, "checkpoint_every": 3}
    config = {**settings, **changes, "out": str(tmp_path), "recipe": "simclr_small"}
    whole, _, end = whole_and_resumed(config, methods.get(name), monkeypatch, cut_at=4)
    assert sslfast.load_encoder(whole.path).num_features
    updates = [int(count) for key, count in end["model"].items() if key.endswith(".updates")]
    assert updates == ([8] if name in ("byol", "mocov2", "mocov3") else [])


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_of_one_is_refused_before_the_first_step(
    name: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    changes = {"method": name, "method_args": needed(name), "batch_size": 1}
    config = TrainConfig(**{**settings, **changes, "out": str(tmp_path / "run")})
    with pytest.raises(ConfigError, match=r"set batch_size to 2 or more"):
        sslfast.train(config)
    assert not (tmp_path / "run").exists()
