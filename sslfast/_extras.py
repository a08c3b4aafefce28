"""Optional dependencies, imported lazily, with an error that names the extra that brings them."""

import importlib
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
        raise MissingExtra(
            f"{purpose} needs the package '{module.split('.')[0]}', which is not installed. "
            f"Install it with: pip install 'sslfast[{extra}]'"
        ) from None
