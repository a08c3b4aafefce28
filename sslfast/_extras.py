"""Optional dependencies, imported lazily, with an error that names the extra that brings them."""

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType


class MissingExtra(ImportError):
    """An optional dependency is not installed; the message says which extra brings it."""


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import ``module``, or raise MissingExtra naming the extra of sslfast that installs it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # Only the absence of the package itself: a broken installation must show its own error.
        if not f"{module}.".startswith(f"{error.name}."):
            raise
        raise _missing(module, extra, purpose) from None


def require_folder(package: str, *, extra: str, purpose: str) -> Path:
    """The folder of a package that is wanted for its files, which is not imported."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise _missing(package, extra, purpose)
    return Path(found.origin).parent


def _missing(module: str, extra: str, purpose: str) -> MissingExtra:
    return MissingExtra(
        f"{purpose} needs the package '{module.split('.')[0]}', which is not installed. "
        f"Install it with: pip install 'sslfast[{extra}]'"
    )
