"""Runs of methods that see small crops beside whole images: resumed exactly, views refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokens import needed
from toys import whole_and_resumed

import sslfast
from sslfast import methods
from sslfast.training import TrainConfig
from sslfast.training.config import ConfigError

CROPS = {"recipe": "dino", "local_size": 8, "recipe_args": {"local": {"count": 2}}}

VIT = {
    **{"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2},
    **{"dynamic_img_size": True},
}


@pytest.mark.parametrize("name", ["dino", "ibot", "dinov2", "msn", "swav"])
def test_runs_are_resumed_exactly(
    name: str, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"method": name, "method_args": needed(name), "steps": 8, "checkpoint_every": 3}
    config = {**settings, **changes, **CROPS, "out": str(tmp_path)}
    if name not in ("dino", "swav"):
        config |= {"model": "vit_micro", "model_args": VIT}
    whole, _, end = whole_and_resumed(config, methods.get(name), monkeypatch, cut_at=4)
    assert name in ("msn", "swav") or end["model"]["criterion.center"].any()
    kept = "encoder" if name == "swav" else "teacher.module.encoder"
    for key, value in sslfast.load_encoder(whole.path).state_dict().items():
        torch.testing.assert_close(value, end["model"][f"{kept}.{key}"])


def test_crops_of_another_size_need_a_model_that_takes_them(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    model = {**VIT, "dynamic_img_size": False}
    changes = {"method": "dino", "method_args": needed("dino"), "model": "vit_micro"}
    config = {**settings, **changes, **CROPS, "model_args": model, "out": str(tmp_path / "run")}
    with pytest.raises(ConfigError, match=r"^local_size: .* dynamic_img_size=True"):
        sslfast.train(TrainConfig(**config))
    assert not (tmp_path / "run").exists()
    model["dynamic_img_size"] = True
    run = sslfast.train(TrainConfig(**config))
    assert sslfast.load_encoder(run).num_features == 32


def test_one_view_is_refused_before_the_first_step(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    changes = {"method": "dino", "method_args": needed("dino"), "recipe": "mae"}
    with pytest.raises(ConfigError, match="recipe: 'mae' makes 1 view"):
        sslfast.train(TrainConfig(**{**settings, **changes, "out": str(tmp_path / "run")}))
    assert not (tmp_path / "run").exists()
