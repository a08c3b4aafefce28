"""docs/guide/masked.md: its snippets run in order, in one namespace, and it names all methods."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

from sslfast import methods, models
from sslfast.cli import _normalized, _parsers

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "guide" / "masked.md").read_text()


def test_snippets_run() -> None:
    snippets = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert len(snippets) == 3
    namespace: dict[str, Any] = {}
    for text in snippets:
        exec(compile(text, "docs/guide/masked.md", "exec"), namespace)
        if "features" in namespace:
            assert namespace.pop("features").shape == (8, 32)
            assert namespace["loss"].isfinite()
    text = "\n".join(snippets[1:])
    for code, shape in re.findall(r"^(\w[\w.]*\(.*\))  # .*?(\[[\d, ]+\])$", text, re.M):
        assert list(eval(code, namespace).shape) == eval(shape), code


def test_commands_are_understood() -> None:
    """Every flag and value is one that the command takes; other tests run them on small images."""
    commands = re.findall(r"^sslfast (.*)$", PAGE.replace("\\\n", " "), re.MULTILINE)
    assert len(commands) >= 8
    parser, known = _parsers()
    for command in commands:
        options = parser.parse_args(_normalized(shlex.split(command, comments=True), known))
        assert options.subcommand in command


def test_every_masked_method_and_size_is_named() -> None:
    masked = [n for n in methods.names() if methods.get(n).encoders is models.VisionTransformer]
    for name in (*masked, *(n for n in models.names() if n.startswith("vit_"))):
        assert f"`{name}`" in PAGE, name


def test_the_papers_settings_are_those_of_the_references() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| `(\{.*?\})` \|(.*)\|$", PAGE, re.MULTILINE)
    assert {name for name, *_ in rows} == {"mae", "beit", "ijepa", "videomae"}
    for name, model, model_args, method_args in rows:
        published = methods.get(name).reference.hyperparameters
        assert (model, json.loads(model_args)) == (published["model"], published["model_args"])
        shown = json.loads(method_args.strip(" `") or "{}")
        assert shown == {k: v for k, v in published.items() if re.match("(de|pre)", k)}
