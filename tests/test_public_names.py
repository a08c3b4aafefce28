"""Public names are a contract: what others import stays, with its signature.

After a deliberate change: python tests/test_public_names.py > tests/public_names.txt
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from pathlib import Path

import pytest

SNAPSHOT = Path(__file__).with_name("public_names.txt")
MODULES = (
    "", ".data", ".ema", ".eval", ".functional", ".losses", ".masking", ".methods", ".models",
    ".optim", ".tokenizers", ".training",
)  # fmt: skip


def parameters(value: Callable[..., object]) -> str:
    """Names and defaults; how annotations are printed differs between versions of Python."""
    empty = inspect.Parameter.empty
    found = inspect.signature(value).parameters.values()
    return str(inspect.Signature([p.replace(annotation=empty) for p in found]))


def public_names() -> list[str]:
    lines = []
    for name in MODULES:
        module = importlib.import_module(f"sslfast{name}")
        for attribute in module.__all__:
            value = getattr(module, attribute)
            if attribute != "__version__":
                lines.append(f"sslfast{name}.{attribute}{parameters(value)}")
    return sorted(lines)


def test_public_names() -> None:
    assert public_names() == SNAPSHOT.read_text().splitlines()


@pytest.mark.parametrize("name", MODULES)
def test_no_module_is_called_like_a_function(name: str) -> None:
    """Or ``from sslfast.losses import info_nce`` gives one or the other, by what came before."""
    package = importlib.import_module(f"sslfast{name}")
    modules = {module.name for module in pkgutil.iter_modules(getattr(package, "__path__", ()))}
    assert not modules & {*package.__all__}


if __name__ == "__main__":
    print("\n".join(public_names()))
