"""The import graph flows one way, and importing a loss stays light."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# From the top down: a file imports from its own layer and from those below, never upwards.
LAYERS = [
    ("cli", "doctor"),
    ("training",),
    ("eval",),
    ("methods",),
    ("tokenizers",),
    ("functional",),
    ("losses", "masking", "ema", "optim", "models", "data"),
    ("kernels",),
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
ANYWHERE = {
    "_arguments",
    "_digest",
    "_extras",
    "_files",
    "_nests",
    "_printable",
    "_renamed",
    "_suggest",
    "_versions",
}  # imports nothing of sslfast
KERNEL_IMPORTS = {"torch", "triton", "sslfast"}


def imports(path: Path, package: list[str]) -> set[str]:
    """Absolute names of all modules that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{start}.{alias.name}" for alias in node.names}
    return found


def sources() -> list[tuple[str, Path, list[str]]]:
    """(layer, file, package) of every module but sslfast/__init__.py, which is lazy."""
    found = []
    for folder, package in ((ROOT / "sslfast", ["sslfast"]), (ROOT / "kernels", None)):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            if package is None:
                found.append(("kernels", path, ["sslfast", "kernels", *parts[:-1]]))
            elif parts != ("__init__",):
                found.append((parts[0], path, [*package, *parts[:-1]]))
    return found


@pytest.mark.parametrize("source", sources(), ids=lambda s: str(s[1].relative_to(ROOT)))
def test_no_back_edge(source: tuple[str, Path, list[str]]) -> None:
    layer, path, package = source
    for name in imports(path, package):
        parts = name.split(".")
        if parts[0] == "sslfast" and len(parts) > 1:
            target = parts[1]
            if layer in ANYWHERE:
                pytest.fail(f"{path.name} must not import {name}")
            if target in LEVEL and layer in LEVEL:
                assert LEVEL[target] >= LEVEL[layer], f"{path} imports {name}, a layer above"
        if layer == "kernels":
            standard = parts[0] in sys.stdlib_module_names
            assert standard or parts[0] in KERNEL_IMPORTS, f"{path} imports {name}"
            allowed = {"kernels", "_C"} | ANYWHERE
            assert parts[0] != "sslfast" or allowed & {*parts[1:2]}, f"{path} imports {name}"


@pytest.mark.parametrize("source", sources(), ids=lambda s: str(s[1].relative_to(ROOT)))
def test_no_private_module_of_another_package(source: tuple[str, Path, list[str]]) -> None:
    """A name with an underscore belongs to the package that holds it, and to those beneath it."""
    _, path, package = source
    for name in imports(path, package):
        parts = name.split(".")
        for n, part in enumerate(parts):
            if parts[0] == "sslfast" and part.startswith("_") and part[:2] != "__" and part != "_C":
                assert package[:n] == parts[:n], f"{path} imports {name}"


def test_every_room_has_its_layer() -> None:
    names = {layer for layer, _, _ in sources()}
    assert names <= set(LEVEL) | ANYWHERE | {"__main__"}


def test_a_loss_imports_no_optional_package() -> None:
    code = (
        "import sys; from sslfast.losses import NTXentLoss; "
        "print([m for m in ('nvidia.dali', 'jsonargparse', 'sklearn', 'matplotlib', 'rich', "
        "'tensorboard', 'skimage', 'mlxtend', 'sslfast.training') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_a_loss_imports_little_of_this_package() -> None:
    """Each in a process of its own, forked from one that has imported torch alone."""
    code = """
import os, sys, torch
from torch import nn
import sslfast.losses
for loss in sslfast.losses.__all__:
    if not os.fork():
        getattr(sslfast.losses, loss)
        print(loss, *(m for m in sys.modules if m.partition(".")[0] == "sslfast"), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {line.split()[0]: line.split()[1:] for line in shown.stdout.splitlines()}
    assert set(loaded) >= {"NTXentLoss", "ClipLoss", "SupConLoss", "cached"}
    assert len(loaded["NTXentLoss"]) < 25, loaded["NTXentLoss"]
    for name, found in loaded.items():
        assert len(found) < 30, (name, found)
        rooms = {module.split(".")[1] for module in found if "." in module}
        assert rooms <= {"losses", "kernels", "_arguments", "_nests", "_suggest"}, (name, rooms)


def test_no_top_level_package_called_kernels() -> None:
    code = "import importlib.util, sys; print(importlib.util.find_spec('kernels'))"
    shown = subprocess.run(
        [sys.executable, "-P" if sys.version_info >= (3, 11) else "-I", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    assert shown.stdout.strip() == "None"


@pytest.mark.parametrize(
    "package",
    ["data", "eval", "masking", "methods", "models", "tokenizers", "training"],
)
def test_no_module_is_hidden_by_a_name(package: str) -> None:
    """``import sslfast.data.order`` gives the module, whatever the package hands out."""
    parent = importlib.import_module(f"sslfast.{package}")
    for found in pkgutil.iter_modules(parent.__path__):
        module = importlib.import_module(f"{parent.__name__}.{found.name}")
        assert getattr(parent, found.name) is module
