"""docs/guide/evaluation.md: each snippet runs on its own, after a run like the README's."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from sslfast.cli import _normalized, _parsers
from sslfast.training.encoder import build_encoder, save_encoder

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "guide" / "evaluation.md").read_text()
MODEL = {"model": "convnet_small", "model_args": {"width": 8, "depth": 1}}
IMAGES = {"image_size": 16, "mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}


def test_snippets_run(
    image_folder: Path, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs" / "photos").mkdir(parents=True)
    encoder = build_encoder(**MODEL, seed=0)
    path = tmp_path / "runs" / "photos" / "encoder.safetensors"
    save_encoder(path, encoder.state_dict(), MODEL | IMAGES)
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert len(snippets) == 5
    found: list[dict[str, Any]] = []
    for text in snippets:
        small = re.sub("builtin:(photos|mnist)", str(image_folder), text).replace("=100", "=10")
        found.append({})
        exec(compile(small, "docs/guide/evaluation.md", "exec"), found[-1])
    assert (len(found[0]["train"]), len(found[0]["test"])) == (64, 16)
    assert found[1]["features"].shape == (8, encoder.num_features)
    assert 0 < found[2]["pixels"]["accuracy"] <= 1
    assert 0 < found[3]["found"].accuracy <= 1
    assert found[3]["found"].steps == 10
    assert found[4]["curve"].area == found[4]["ideal"].area > found[4]["random"].area


def test_commands_are_understood() -> None:
    commands = re.findall(r"^sslfast (.*)$", PAGE, re.MULTILINE)
    assert len(commands) >= 3
    parser, known = _parsers()
    for command in commands:
        assert parser.parse_args(_normalized(shlex.split(command), known)).subcommand == "eval"
