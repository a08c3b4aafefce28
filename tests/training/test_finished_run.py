"""A run's folder whose files are damaged, or are not of a run: one line that names the file."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from sslfast.training.config import ConfigError
from sslfast.training.encoder import build_encoder, load_encoder, save_encoder
from sslfast.training.evaluation import FinishedRun, embed, evaluate
from sslfast.training.report import report
from sslfast.training.run_folder import RunFolderError
from sslfast.training.tokenizer import TokenizerConfig

MODEL = {"model": "convnet_small", "model_args": {"width": 8, "depth": 1}}
IMAGES = {"image_size": 16, "mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}
SETTINGS = {"method": "simclr", "data": "photos", "schema_version": 1}


def write(folder: Path, settings: Any = SETTINGS, **said: Any) -> None:
    description = {k: v for k, v in {**MODEL, **IMAGES, **said}.items() if v is not None}
    weights = build_encoder(**MODEL, seed=0).state_dict()
    save_encoder(folder / "encoder.safetensors", weights, description)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))


def test_settings_that_are_not_of_a_run_are_named(tmp_path: Path) -> None:
    for settings, message in (
        ({}, "must hold 'name: value' lines"),
        ({"method": "simclr"}, "names no data"),
        (SETTINGS | {"data": 3}, "data must be .*, got 3"),
        (SETTINGS | {"seed": "x"}, "seed must be"),
        (SETTINGS | {"recipe_args": [1]}, "recipe_args must be"),
        (SETTINGS | {"daata": "x"}, "Did you mean 'data'"),
    ):
        write(tmp_path, settings or None)
        with pytest.raises(ConfigError, match=message) as caught:
            FinishedRun.open(tmp_path, "cpu")
        assert f"{tmp_path}/config.yaml" in str(caught.value)
    # What this version would refuse, a finished run has done; what it does not name is a default.
    write(tmp_path, SETTINGS | {"method": "gone", "steps": 3, "epochs": 3})
    assert FinishedRun.open(tmp_path, "cpu").settings["seed"] == 0


def test_an_encoder_with_impossible_views_is_named(tmp_path: Path) -> None:
    for said, message in (
        ({"image_size": "big"}, "views that cannot be made"),
        ({"image_size": 0}, r"\(size must be at least 1"),
        ({"mean": (0.1, 0.2)}, "mean must be a list of 3 values"),
        ({"std": "abc"}, "views that cannot be made"),
        ({"num_frames": 4}, "sampling_rate"),
    ):
        write(tmp_path, **said)
        run = FinishedRun.open(tmp_path, "cpu")
        for use in (
            run.encoder,
            partial(run.dataset, "photos", "test"),
            partial(load_encoder, tmp_path),
        ):
            with pytest.raises(ValueError, match=message) as caught:
                use()
            assert f"{tmp_path}/encoder.safetensors is damaged" in str(caught.value)
            assert "\n" not in str(caught.value)
    write(tmp_path, model=None)
    with pytest.raises(ValueError, match=r"encoder.safetensors is damaged: .* not name a model"):
        FinishedRun.open(tmp_path, "cpu")


def test_data_and_files_may_be_pathlib_paths(image_folder: Path, tmp_path: Path) -> None:
    write(tmp_path)
    run = FinishedRun.open(tmp_path, "cpu", threads=1)
    found = evaluate(run, "knn", image_folder, k=1)
    assert found["data"] == str(image_folder)
    assert json.loads((tmp_path / "eval_knn.json").read_text()) == found
    assert embed(run, image_folder, "test", tmp_path / "x.npz") == tmp_path / "x.npz"
    made = TokenizerConfig(image_folder, tmp_path / "t.safetensors", run=tmp_path)
    assert (made.data, made.run) == (str(image_folder), str(tmp_path))
    assert made.out == f"{tmp_path}/t.safetensors"


def test_other_files_in_the_place_of_an_encoder_are_named(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / "encoder.safetensors"
    torch.save({}, path)
    with pytest.raises(ValueError, match=rf"{path} is a file of torch.save"):
        FinishedRun.open(tmp_path, "cpu")
    path.unlink()
    path.mkdir()
    with pytest.raises(RunFolderError, match="holds no finished run: there is no encoder"):
        FinishedRun.open(tmp_path, "cpu")


def test_an_encoders_file_alone(tmp_path: Path, image_folder: Path) -> None:
    """It is evaluated on what is named; a report is of a run."""
    path = tmp_path / "mine.safetensors"
    weights = build_encoder(**MODEL, seed=0).state_dict()
    save_encoder(path, weights, {**MODEL, **IMAGES})
    run = FinishedRun.open(path, "cpu", threads=1)
    with pytest.raises(ConfigError, match=r"give --data .*file names no data of its own"):
        evaluate(run, "knn")
    with pytest.raises(ConfigError, match="data is empty: name a folder"):
        evaluate(run, "knn", "")
    with pytest.raises(RunFolderError, match="a report is of a run's folder"):
        report(run)
    assert evaluate(run, "knn", image_folder, k=5)["accuracy"] > 0.5
    assert (tmp_path / "eval_knn.json").is_file()
