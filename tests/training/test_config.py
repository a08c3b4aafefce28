import dataclasses
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from sslfast.training.config import ConfigError, TrainConfig, read_yaml


def settings(**changes: Any) -> dict[str, Any]:
    return {"data": "photos", "out": "runs/x", "epochs": 3, **changes}


def test_round_trip(tmp_path: Path) -> None:
    config = TrainConfig.from_dict(
        settings(method_args={"temperature": 0.2}, recipe_args={"crop_scale": [0.2, 1.0]}, lr=0.5)
    )
    config.write(tmp_path / "config.yaml")
    assert TrainConfig.read(tmp_path / "config.yaml") == config
    assert read_yaml(tmp_path / "config.yaml")["schema_version"] == 1


def test_paths_may_be_of_pathlib(tmp_path: Path) -> None:
    names = {name: tmp_path / name for name in ("data", "out", "init", "resume")}
    config = TrainConfig(**names, method_args={"tokenizer": tmp_path / "t"}, steps=1)
    config.validate()
    config.write(tmp_path / "config.yaml")
    assert read_yaml(tmp_path / "config.yaml")["method_args"] == {"tokenizer": str(tmp_path / "t")}
    assert (config.data, config.resume) == (str(tmp_path / "data"), str(tmp_path / "resume"))
    spelled = {name: str(path) for name, path in names.items()}
    assert TrainConfig(**spelled, method_args=config.method_args, steps=1) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batchsize": 3}, "unknown setting 'batchsize' in .*Did you mean 'batch_size'"),
        ({"batch-size": 3}, "Did you mean 'batch_size'"),
        ({"qqqq": 3}, "unknown setting 'qqqq' in the settings. .sslfast train --help"),
        ({"data": ""}, "'data' is missing"),
        ({"out": ""}, "'out' is missing"),
        ({"steps": 5}, "exactly one of epochs and steps: both are"),
        ({"epochs": None}, "exactly one of epochs and steps: neither is"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"batch_size": 10, "accumulate": 4}, "multiple of accumulate"),
        ({"contrastive_batch": 0}, "contrastive_batch must be at least 1"),
        (
            {"batch_size": 16, "accumulate": 4, "contrastive_batch": 6},
            "multiple of the micro-batch",
        ),
        ({"batch_size": 16, "accumulate": 4, "contrastive_batch": 12}, "and divide batch_size 16"),
        (
            {"batch_size": 16, "accumulate": 2, "contrastive_batch": 16, "compile": True},
            "which compile does not take: set compile to false",
        ),
        ({"lr": -1.0}, "lr must be at least 0"),
        ({"lr": float("nan")}, "lr must be a finite number, got nan"),
        ({"lr": "1e-3"}, "lr must be a finite number, got '1e-3' .YAML reads 1e-3 as text"),
        ({"lr": "1.0e3"}, "lr must be a finite number, got '1.0e3' .YAML reads 1e-3 as text"),
        ({"lr": "1.0e-3"}, "lr must be a finite number, got '1.0e-3'$"),
        ({"lr": "nan"}, "lr must be a finite number, got 'nan'$"),
        ({"seed": 1.5}, "seed must be an integer"),
        ({"seed": True}, "seed must be an integer"),
        ({"compile": 1}, "compile must be true or false, got 1"),
        ({"optimizer": "adam"}, "optimizer must be one of adamw, lars, sgd"),
        ({"clip_grad": 0.0}, "clip_grad must be more than 0, or null, got 0.0"),
        ({"clip_grad": float("nan")}, "clip_grad must be a finite number or null"),
        ({"optimizer": "lars", "weight_decay": 0.0}, "lars scales the layers that have weight"),
        ({"seed": 2**64}, "seed must be at most 4611686018427387904, got 18446744073709551616"),
        ({"seed": 2**63 - 1}, "seed must be at most 4611686018427387904, got 9223372036854775807"),
        ({"momentum": 1.0}, "momentum must be less than 1, got 1.0"),
        ({"threads": 5000}, "threads must be at most 1024, or null"),
        ({"image_size": 10**6}, "image_size must be at most 16384, or null"),
        ({"init": ""}, "init is empty: give it a value, or leave it out"),
        ({"method_args": 3}, "method_args must be a dict, got 3"),
        ({"image_size": "32"}, "image_size must be an integer or null, got '32'"),
        ({"schema_version": 2}, "newer one. Upgrade"),
        ({"schema_version": "new"}, "not a version"),
    ],
)
def test_bad_settings_are_explained(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig.from_dict(settings(**changes))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3\n", "unknown setting 'epoch' in .*Did you mean 'epochs'"),
        ("- a\n- b\n", "must hold 'name: value' lines"),
        ("method: [simclr\n", "not valid YAML"),
        # A newer file's unknown settings are no spelling mistakes.
        ("schema_version: 9\nwarp_drive: true\n", "schema_version 9.*newer"),
    ],
)
def test_bad_files_are_explained(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        TrainConfig.read(path)


def test_a_missing_file_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the configuration .*none.yaml: No such"):
        TrainConfig.read(tmp_path / "none.yaml")


BOMB = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}]\n" for a, b in pairwise("abcdefghijklmnopqrst")
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "more than 32 aliases"),
        ("method_args: " + "[" * 50_000, "more than 32 deep"),
        ("method_args: &a {x: [*a]}\n", r"run.yaml is no configuration: \*a stands inside of what"),
        (
            f"model_args: &a {'{x: ' * 20}1{'}' * 20}\nmethod_args: {'{x: ' * 20}*a{'}' * 20}\n"
            "data: d\nout: o\nsteps: 1\n",
            "method_args.x.x.* 32 deep",
        ),
        ("#" + "x" * 2_000_000, "more than 1048576 bytes"),
        ("\0", "not valid YAML"),
    ],
)
def test_hostile_files_end_soon(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        TrainConfig.read(path)


def test_names_that_are_no_utf8_come_back_as_they_were(tmp_path: Path) -> None:
    config = TrainConfig.from_dict(settings(data="a\udcff\x1b[31m/\u65e5"))
    config.write(tmp_path / "config.yaml")
    assert TrainConfig.read(tmp_path / "config.yaml") == config


def test_aliases_are_fine_in_small_numbers(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model_args: &x {depth: 3}\nmethod_args: *x\ndata: d\nout: o\nsteps: 1\n")
    assert TrainConfig.read(path).method_args == {"depth": 3}


def test_pipes_and_devices_are_no_configuration(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(ConfigError, match=f"{path}: it is no ordinary file"):
            TrainConfig.read(path)
    with pytest.raises(ConfigError, match="Is a directory"):
        TrainConfig.read(tmp_path)


def test_paths_as_people_give_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    given = settings(out="~/runs/x", data=Path("photos"), init=Path("~/w.pt"), resume="~/old")
    config = TrainConfig.from_dict(given)
    assert (config.out, config.data) == (f"{tmp_path}/runs/x", "photos")
    assert (config.init, config.resume) == (f"{tmp_path}/w.pt", f"{tmp_path}/old")
    assert TrainConfig.from_dict(settings()).resume == "auto"
    tokenizer = {"tokenizer": Path("t.safetensors")}
    assert TrainConfig.from_dict(settings(method_args=tokenizer)).method_args == {
        "tokenizer": "t.safetensors"
    }
    (tmp_path / "c.yaml").write_text("data: d\nout: o\nsteps: 1\n")
    assert TrainConfig.read("~/c.yaml").data == "d"


def test_every_setting_is_documented() -> None:
    documented = (TrainConfig.__doc__ or "").split("Args:")[1]
    for item in dataclasses.fields(TrainConfig):
        assert f"        {item.name}: " in documented


def test_arguments_that_no_file_can_hold_are_refused() -> None:
    given = {"data": "d", "out": "o", "steps": 1}
    with pytest.raises(ConfigError, match=r"method_args.tokenizer must be a plain .*PosixPath"):
        TrainConfig.from_dict({**given, "method_args": {"tokenizer": [Path("x")]}})
    with pytest.raises(ConfigError, match=r"model_args.weights must be a plain .*PosixPath"):
        TrainConfig.from_dict({**given, "model_args": {"weights": Path("x")}})
    with pytest.raises(ConfigError, match=r"recipe_args.crop_scale must be a plain value"):
        TrainConfig.from_dict({**given, "recipe_args": {"crop_scale": [object(), 1.0]}})


def test_settings_from_python_are_those_that_the_file_will_hold(tmp_path: Path) -> None:
    import numpy as np

    given = {"data": "d", "out": "o", "steps": np.int64(2), "lr": np.float32(0.5)}
    given["recipe_args"] = {"crop_scale": (np.float64(0.5), 1.0)}
    config = TrainConfig.from_dict(given)
    config.write(tmp_path / "config.yaml")
    assert TrainConfig.read(tmp_path / "config.yaml") == config
    assert config.recipe_args == {"crop_scale": [0.5, 1.0]}
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(ConfigError, match="nests values more than"):
        TrainConfig.from_dict({**given, "model_args": {"a": loop}})
