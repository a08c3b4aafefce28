"""docs/masked.md: its snippets run, in order and in one namespace, and it names every method."""

import re
from pathlib import Path
from typing import Any

from sslfast import methods, models

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "masked.md").read_text()


def test_snippets_run() -> None:
    snippets = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert len(snippets) == 2
    namespace: dict[str, Any] = {}
    for text in snippets:
        exec(compile(text, "docs/masked.md", "exec"), namespace)
        if "features" in namespace:
            assert namespace.pop("features").shape == (8, 32)
            assert namespace["loss"].isfinite()
    for code, shape in re.findall(r"^(\w[\w.]*\(.*\))  # .*?(\[[\d, ]+\])$", snippets[1], re.M):
        assert list(eval(code, namespace).shape) == eval(shape), code


def test_every_masked_method_and_size_is_named() -> None:
    masked = [n for n in methods.names() if methods.get(n).encoders is models.VisionTransformer]
    for name in (*masked, *(n for n in models.names() if n.startswith("vit_"))):
        assert f"`{name}`" in PAGE, name
