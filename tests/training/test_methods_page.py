"""docs/guide/methods.md: its snippet runs, and it names every method."""

import re
from pathlib import Path
from typing import Any

import pytest

from sslfast import methods
from sslfast.models import registry

PAGE = (Path(__file__).resolve().parents[2] / "docs/guide/methods.md").read_text()


def test_every_method_is_named() -> None:
    for name in methods.names():
        assert f"`{name}`" in PAGE or f"configs/{name}/" in PAGE, name


def test_the_snippet_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_FACTORIES", dict(registry._FACTORIES))
    (text,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert text.count("\n") <= 16
    namespace: dict[str, Any] = {"__name__": "docs"}
    exec(compile(text.replace('"steps": 20', '"steps": 2'), "methods.md", "exec"), namespace)
    assert namespace["features"].num_features == 32
    assert namespace["features"][0].kernel_size == (5, 5)
