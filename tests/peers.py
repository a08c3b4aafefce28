"""Other libraries' classes as oracles and baselines, from a folder that `make peers` fills.

lightly's loss package imports torchvision, which has no build beside a CPU torch, and packages
that its losses do not use; empty stand-ins take their place while it is imported.
"""

import importlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

PEERS = Path(__file__).resolve().parents[1] / "build" / "peers"
STAND_INS = ("torchvision", "pytorch_lightning", "hydra", "omegaconf", "tqdm", "timm")


class _Anything(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class _StandIns(MetaPathFinder, Loader):
    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        if not any(name == known or name.startswith(f"{known}.") for known in self.names):
            return None
        return ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Anything(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


@contextmanager
def _peers_first(stand_ins: Sequence[str] = STAND_INS) -> Iterator[None]:
    finder = _StandIns(stand_ins)
    with mock.patch.object(sys, "path", [str(PEERS), *sys.path]):
        sys.meta_path.insert(0, finder)
        try:
            yield
        finally:
            sys.meta_path.remove(finder)
            for name in list(sys.modules):
                if isinstance(sys.modules[name], _Anything):
                    del sys.modules[name]


def load_file(path: str) -> ModuleType:
    """Import one file of a peer whose package imports what is not here."""
    found = PEERS / path
    if not found.is_file():
        raise FileNotFoundError(f"{found} is missing: run `make peers` to install the peers")
    spec = importlib.util.spec_from_file_location(path.replace("/", "_").removesuffix(".py"), found)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load(module: str) -> ModuleType:
    """Import a peer's module; run `make peers` first."""
    if not PEERS.is_dir():
        raise FileNotFoundError(f"{PEERS} is missing: run `make peers` to install the peers")
    with _peers_first():
        return importlib.import_module(module)


def timm_model(name: str) -> ModuleType:
    """A file of timm.models and what it needs, without timm's data and other models."""
    if not (PEERS / "timm").is_dir():
        raise FileNotFoundError(f"{PEERS / 'timm'} is missing: run `make peers`")
    bare = {}
    for package in ("timm", "timm.models"):  # whose __init__ would import everything
        bare[package] = ModuleType(package)
        bare[package].__path__ = [str(PEERS / package.replace(".", "/"))]
        bare[package].__dict__["__version__"] = "of the peers"
    stand_ins = ("torchvision", "huggingface_hub", "timm.data")
    with mock.patch.dict(sys.modules, bare), _peers_first(stand_ins):
        return importlib.import_module(f"timm.models.{name}")
