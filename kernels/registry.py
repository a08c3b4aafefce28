"""Finds the backends of every op, picks one for a problem, and explains why.

An op is a sub-package of this folder; what torch sees of it is in its op.py, its form over several
ranks in ranks.py, and every other module is a backend:

    DEVICE: str                      "cpu", "cuda" or "any"
    PRIORITY: int                    the larger is tried first
    supports(problem) -> str | None  optional: None, or why this problem is refused, for people
    available() -> str | None        optional: None, or why it can never run on this machine

and the op's functions beside them. Adding a file adds a backend: there is no list to edit.
"""

import importlib
import logging
import os
import pkgutil
from collections.abc import Hashable
from dataclasses import dataclass
from functools import cache, lru_cache
from types import ModuleType, TracebackType
from typing import Any, Protocol

logger = logging.getLogger("sslfast")

ENVIRONMENT_VARIABLE = "SSLFAST_BACKEND"
NOT_BACKENDS = ("op", "ranks")


class Problem(Hashable, Protocol):
    """What a backend is asked to do: an op's frozen dataclass with at least a device type."""

    @property
    def device(self) -> str:
        """Device type, "cpu" or "cuda"."""


class BackendError(RuntimeError):
    """No backend, or not the one that was asked for, can do what was asked."""


@dataclass(frozen=True)
class Backend:
    """One backend of one op: its module, or the reason why it cannot be imported."""

    name: str
    module: Any  # a module that follows the contract above; None when the import failed
    import_error: str | None

    def unavailable(self) -> str | None:
        """Why this backend can never run on this machine, or None."""
        if self.import_error is not None:
            return self.import_error
        available = getattr(self.module, "available", None)
        return None if available is None else available()

    def refusal(self, problem: Problem) -> str | None:
        """Why this backend does not take the problem, or None."""
        reason = self.unavailable()
        if reason is not None:
            return reason
        if self.module.DEVICE not in ("any", problem.device):
            return f"runs on {self.module.DEVICE} tensors only, these are on {problem.device}"
        supports = getattr(self.module, "supports", None)
        return None if supports is None else supports(problem)


def _submodules(package: ModuleType, *, packages: bool) -> list[str]:
    found = pkgutil.iter_modules(package.__path__)
    return sorted(m.name for m in found if m.ispkg == packages and not m.name.startswith("_"))


def _folders() -> list[ModuleType]:
    names = _submodules(importlib.import_module(__package__), packages=True)
    return [importlib.import_module(f"{__package__}.{name}") for name in names]


@cache
def ops() -> tuple[str, ...]:
    """Names of all ops that have backends: each has an oracle at least."""
    found = (f for f in _folders() if "reference" in _submodules(f, packages=False))
    return tuple(folder.__name__.rpartition(".")[2] for folder in found)


def load() -> None:
    """Make every op known to torch; an op is otherwise, when what calls it is imported."""
    for folder in _folders():
        names = _submodules(folder, packages=False)
        for name in names:
            if name in NOT_BACKENDS or "reference" not in names:
                importlib.import_module(f"{folder.__name__}.{name}")


@cache
def candidates(op: str) -> tuple[Backend, ...]:
    """All backends of an op, best first."""
    package = importlib.import_module(f"{__package__}.{op}")
    found = []
    for name in _submodules(package, packages=False):
        if name in NOT_BACKENDS:
            continue
        try:
            module = importlib.import_module(f"{package.__name__}.{name}")
        except ImportError as error:
            found.append(Backend(name, None, f"cannot be imported: {error}"))
        else:
            found.append(Backend(name, module, None))
    return tuple(sorted(found, key=lambda b: b.module.PRIORITY if b.module else -1, reverse=True))


def backends() -> dict[str, dict[str, str | None]]:
    """Every op and backend: None where it can run on this machine, else the reason."""
    return {op: {b.name: b.unavailable() for b in candidates(op)} for op in ops()}


@cache
def backend_names() -> tuple[str, ...]:
    """Names of all backends of all ops."""
    return tuple(sorted({b.name for op in ops() for b in candidates(op)}))


def _validated(name: str) -> str:
    if name != "auto" and name not in backend_names():
        raise ValueError(f"unknown backend {name!r}; choose from {('auto', *backend_names())}")
    return name


# Process-wide on purpose: autograd runs backward functions in threads of its own.
_forced: str | None = None


def forced_backend() -> str:
    """The backend in force: from use_backend, else SSLFAST_BACKEND, else "auto"."""
    return _forced or _validated(os.environ.get(ENVIRONMENT_VARIABLE) or "auto")


class use_backend:  # noqa: N801 - reads as a statement, like torch.no_grad
    """Force a backend for every op: at once when called, until the end of a ``with`` block.

    Args:
        name: "reference", "tiled", "cpu", "triton", "cuda", or "auto" for the best that fits.
            An op that has no backend of this name goes on choosing for itself, and logs so once;
            one whose backend refuses a problem raises BackendError with the reason.

    Raises:
        ValueError: no op has a backend of this name.
    """

    def __init__(self, name: str) -> None:
        global _forced
        self._previous = _forced
        _forced = _validated(name)
        _pick.cache_clear()

    def __enter__(self) -> "use_backend":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        global _forced
        _forced = self._previous
        _pick.cache_clear()


_told: set[str] = set()


def _tell_once(message: str) -> None:
    if message not in _told:
        _told.add(message)
        logger.warning(message)


@lru_cache(maxsize=4096)
def _pick(op: str, problem: Problem, forced: str, told: bool) -> Backend:
    found = candidates(op)
    if forced != "auto":
        named = [b for b in found if b.name == forced]
        if named:
            reason = named[0].refusal(problem)
            if reason is not None:
                raise BackendError(f"backend {forced!r} of {op} was forced, but {reason}")
            return named[0]
        _tell_once(f"{op} has no backend {forced!r}: choosing among {[b.name for b in found]}")
    refusals: list[tuple[str, str]] = []
    for backend in found:
        reason = backend.refusal(problem)
        if reason is None:
            for name, why in refusals if told else ():
                _tell_once(f"{op} uses {backend.name!r} and not {name!r}: it {why}")
            return backend
        # A backend for another device is no fall-back worth telling.
        if backend.module is None or backend.module.DEVICE in ("any", problem.device):
            refusals.append((backend.name, reason))
    listed = "; ".join(f"{b.name}: {b.refusal(problem)}" for b in found)
    raise BackendError(f"no backend of {op} takes {problem}: {listed}")


def pick(op: str, problem: Problem, told: bool = True) -> Any:
    """The module of the best backend that takes ``problem``.

    Args:
        op: its name.
        problem: what it is asked to do.
        told: log once why better backends refuse. False where they refuse what the op itself
            chose, such as a dtype: callers can do nothing about it.

    Raises:
        BackendError: the forced backend refuses, or none accepts; the message gives the reasons.
    """
    return _pick(op, problem, forced_backend(), told).module
