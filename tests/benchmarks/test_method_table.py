"""The table of methods has every method, with settings that a training takes."""

from pathlib import Path
from typing import Any

import pytest
from tokens import needed

from benchmarks.harness import method_table
from sslfast import methods, models
from sslfast.data import recipe
from sslfast.training import TrainConfig


@pytest.mark.parametrize("name", methods.names())
def test_a_training_takes_the_settings(name: str, tmp_path: Path) -> None:
    chosen: dict[str, Any] = {**method_table.ALL, **method_table.settings(name)}
    config = TrainConfig(**{**chosen, "out": str(tmp_path / "run")})
    config.validate()
    view = recipe(methods.get(name).own_recipe(), size=config.image_size).views[0]
    sizes = {"img_size": view.size} if "vit" in config.model else {}
    encoder = models.create(config.model, **sizes, **config.model_args)
    methods.create(name, encoder, **{**config.method_args, **needed(name)})  # files are only named


def test_every_method_has_one_line() -> None:
    lines = method_table.table().splitlines()
    assert [line.split("`")[1] for line in lines[2:]] == methods.names()
    assert {line.count("|") for line in lines} == {6}


def test_settings_as_flags() -> None:
    given = {"method": "beit", "image_size": 32, "model_args": {"depth": 2, "width": 8}}
    assert method_table.flags(given) == (
        "--method beit --image-size 32 --model-args.depth 2 --model-args.width 8"
    )
