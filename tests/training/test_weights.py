"""Weights as they are found: checkpoints of other trainers, and files that are none."""

import argparse
import logging
import os
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sslfast import models
from sslfast.models import VisionTransformer
from sslfast.training.config import ConfigError
from sslfast.training.encoder import load_encoder
from sslfast.training.weights import load_weights

State = dict[str, Tensor]


def model() -> torch.nn.Module:
    """With a batch norm whose statistics are not the initial ones."""
    built = models.create("convnet_small", width=8, depth=1)
    built(torch.randn(4, 3, 16, 16))
    return built


def behind(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


class AttributeDict(dict):  # type: ignore[type-arg]
    """As Lightning's hyper-parameters."""


class Settings:
    rate = 0.1


SHAPES: dict[str, tuple[str, Callable[[State, State], Any]]] = {
    "plain": ("", lambda good, other: OrderedDict(good)),
    "wrapped": ("model.*", lambda good, other: {"model": good, "epoch": 3}),
    "parallel": (
        "state_dict.module.*",
        lambda good, other: {"state_dict": behind("module.", good)},
    ),
    "dino": (
        "teacher.backbone.*",
        lambda good, other: {
            "student": behind("module.backbone.", other),
            "teacher": behind("backbone.", good) | {"head.weight": torch.ones(2)},
            "args": argparse.Namespace(lr=0.1, out=Path("x")),
            "loss": np.float64(3.0),
        },
    ),
    "lightning": (
        "state_dict.model.*",
        lambda good, other: {
            "state_dict": behind("model._orig_mod.", good),
            "hyper_parameters": AttributeDict(rate=0.1, more=Settings(), kind=list),
            "rng": np.random.RandomState(0).get_state(),
        },
    ),
    "moco": (
        "state_dict.module.encoder_q.*",
        lambda good, other: {
            "state_dict": behind("module.encoder_q.", good) | behind("module.encoder_k.", other),
            "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1}]},
        },
    ),
    "ijepa": (
        "target_encoder.module.*",
        lambda good, other: {
            "encoder": behind("module.", other),
            "target_encoder": behind("module.", good),
        },
    ),
    "ema": ("state_dict_ema.*", lambda good, other: {"state_dict": other, "state_dict_ema": good}),
    "ours": (
        "model.encoder.*",
        lambda good, other: {
            "schema_version": 1,
            "config": {"seed": 0},
            "model": behind("teacher.", other) | behind("encoder.", good),
        },
    ),
    "list": ("0.*", lambda good, other: [good, {"epoch": 3}]),
    "old": ("", lambda good, other: {n: t for n, t in good.items() if "tracked" not in n}),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_checkpoints_of_others(
    shape: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place, wrap = SHAPES[shape]
    good, other = model().state_dict(), model().state_dict()
    allowed = set(torch.serialization.get_safe_globals())
    for legacy in {False, shape in ("dino", "lightning")}:
        path = tmp_path / ("x.safetensors" if shape == "ema" else f"{legacy}.pth")  # by content
        torch.save(wrap(good, other), path, _use_new_zipfile_serialization=not legacy)
        target = model()
        with caplog.at_level(logging.INFO, "sslfast"):
            load_weights(target, path)
        assert f"has the encoder in {place}" in caplog.text if place else not caplog.text
        for name, tensor in target.state_dict().items():
            assert "tracked" in name or torch.equal(tensor, good[name]), name
    assert set(torch.serialization.get_safe_globals()) == allowed


def test_what_the_encoder_has_no_place_for_is_told(tmp_path: Path) -> None:
    released = behind("backbone.", model().state_dict() | {"fc.bias": torch.ones(3)})
    torch.save(released | {"queue": torch.ones(3)}, tmp_path / "x.pt")
    assert load_weights(model(), tmp_path / "x.pt") == ["fc.bias"]


def test_positions_behind_a_prefix_are_interpolated(tmp_path: Path) -> None:
    def vit(size: int) -> VisionTransformer:
        return models.create("vit_micro", img_size=size, embed_dim=8, depth=1, num_heads=1)

    torch.save({"teacher": behind("backbone.", vit(16).state_dict())}, tmp_path / "x.pt")
    target = vit(32)
    load_weights(target, tmp_path / "x.pt")
    expected = vit(32)
    torch.save(vit(16).state_dict(), tmp_path / "y.pt")
    load_weights(expected, tmp_path / "y.pt")
    assert torch.equal(target.pos_embed, expected.pos_embed)


class Hostile:
    def __reduce__(self) -> Any:
        return os.system, ("exit 1",)


def test_files_that_hold_no_such_weights_are_explained(tmp_path: Path) -> None:
    state = model().state_dict()
    partial = behind("module.", dict(list(state.items())[:4]))
    vit = models.create("vit_micro", embed_dim=8, depth=1, num_heads=1).state_dict()
    other = r"none of the model's \d+ tensors by name \(stages.* is it of another model"
    saved = (
        ({"net": partial}, r"holds 'net' \(4 tensors\)\. 4 of .* fit in net\.module\.\*, but 'sta"),
        (vit, rf"holds \d+ tensors \('pos_embed', .* and {other}"),
        ([1, 2], "holds a list of 2, and no weights by name: give a state dict"),
        (None, "holds NoneType, and no weights"),
        ({"m": model()}, r"'m' \(an object of sslfast\.models\.\w+\.\w+\), .*save its state_dict"),
        ({"model": state, "x": Hostile()}, r"cannot be read .*posix.system"),
    )
    files = {}
    for i, (held, message) in enumerate(saved):
        torch.save(held, tmp_path / f"{i}.pt")
        files[f"{i}.pt"] = message
    torch.save(state, tmp_path / "new.pt", pickle_protocol=4)
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("a.txt", "a")
    for name, content, message in (
        ("text.pt", b"epoch,loss\n1,2\n", "neither a .safetensors file nor .* begins with b'epoch"),
        ("empty.pt", b"", "is empty"),
        ("half.pt", (tmp_path / "0.pt").read_bytes()[:2000], r"cannot be read .*not a zip file"),
        ("new.pt", None, "pickle protocol 4"),
        ("photos.zip", None, "other zip archive"),
    ):
        files[name] = message
        if content is not None:
            (tmp_path / name).write_bytes(content)
    for name, message in files.items():
        with pytest.raises(ConfigError, match=rf"init: \S*{name} .*{message}") as caught:
            load_weights(model(), tmp_path / name)
        assert "\n" not in str(caught.value)
    os.mkfifo(tmp_path / "pipe")
    for path in ("/dev/null", tmp_path / "pipe"):
        with pytest.raises(
            ConfigError, match=f"init: {path} is no ordinary file, .*: copy the wei"
        ):
            load_weights(model(), path)
        with pytest.raises(ValueError, match=f"{path} is no ordinary file"):
            load_encoder(path)
    with pytest.raises(ValueError, match="does not say which model it holds: give the folder"):
        load_encoder(tmp_path / "0.pt")
