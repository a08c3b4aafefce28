"""Methods by name: the package is walked once, and every ``@register`` in it is found."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from sslfast._suggest import did_you_mean

if TYPE_CHECKING:
    from torch import nn

    from sslfast.methods.base import Method

MethodType = TypeVar("MethodType", bound="type[Method]")

_METHODS: dict[str, "type[Method]"] = {}


def register(name: str) -> Callable[[MethodType], MethodType]:
    """Make a Method available under ``name`` (a class decorator)."""

    def decorate(method: MethodType) -> MethodType:
        if name in _METHODS:
            raise ValueError(f"a method named '{name}' is already registered")
        _METHODS[name] = method
        return method

    return decorate


@cache
def _discover() -> None:
    package = importlib.import_module(__package__)
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{__package__}.{module.name}")


def names() -> list[str]:
    """The names of all methods, sorted."""
    _discover()
    return sorted(_METHODS)


def get(name: str) -> "type[Method]":
    """The class of the method ``name``.

    Raises:
        ValueError: no method has that name; the message lists those that exist.
    """
    known = names()
    if name not in known:
        raise ValueError(
            f"unknown method '{name}'.{did_you_mean(name, known)} Known: {', '.join(known)}"
        )
    return _METHODS[name]


def create(name: str, encoder: "nn.Module", **hyperparameters: Any) -> "Method":
    """Build the method ``name`` around an encoder.

    Args:
        name: one of names().
        encoder: a module with ``num_features`` that maps a view to features [B, num_features].
        **hyperparameters: keywords of that method's constructor.

    Raises:
        ValueError: no method has that name, or a hyperparameter is out of its range.
        TypeError: the method has no such hyperparameter; the message lists those it has.
    """
    method = get(name)
    known = list(inspect.signature(method).parameters)[1:]
    for keyword in hyperparameters:
        if keyword not in known:
            raise TypeError(
                f"method '{name}' has no hyperparameter '{keyword}'."
                f"{did_you_mean(keyword, known)} It takes: {', '.join(known) or 'none'}"
            )
    return method(encoder, **hyperparameters)
