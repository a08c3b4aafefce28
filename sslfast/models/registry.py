"""Encoders by name: ``@register`` lists a factory, create() calls one."""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from sslfast._suggest import did_you_mean
from sslfast.models.timm_models import PREFIX, timm_encoder

Factory = TypeVar("Factory", bound=Callable[..., nn.Module])

_FACTORIES: dict[str, Callable[..., nn.Module]] = {}


def register(factory: Factory, name: str | None = None) -> Factory:
    """Make ``factory`` available under its own name, or under ``name`` (a decorator).

    A factory spells out its keywords (no ``**kwargs``), gives each a default, and returns an
    encoder: a module with ``num_features`` that maps images [B, C, H, W] to features [B, F].
    """
    name = name or factory.__name__
    if name in _FACTORIES:
        raise ValueError(f"an encoder named '{name}' is already registered")
    _FACTORIES[name] = factory
    return factory


def names() -> list[str]:
    """The names that create() knows, sorted."""
    return sorted(_FACTORIES)


def create(name: str, **kwargs: Any) -> nn.Module:
    """Build the encoder ``name``.

    Args:
        name: one of names(), or "timm:NAME" (extra ``timm``).
        **kwargs: keywords of that encoder's factory, such as ``in_channels``.

    Returns:
        The encoder, in training mode, with an integer attribute ``num_features``.

    Raises:
        ValueError: no encoder has that name; the message lists those that exist.
        TypeError: the encoder has no such keyword; the message lists those it has.
    """
    if name.startswith(PREFIX):
        return timm_encoder(name.removeprefix(PREFIX), **kwargs)
    if name not in _FACTORIES:
        raise ValueError(
            f"unknown encoder '{name}'; known, beside timm:NAME: {names()}."
            f"{did_you_mean(name, names())}"
        )
    factory = _FACTORIES[name]
    known = list(inspect.signature(factory).parameters)
    for keyword in kwargs:
        if keyword not in known:
            raise TypeError(
                f"encoder '{name}' has no keyword '{keyword}'; keywords: {known}."
                f"{did_you_mean(keyword, known)}"
            )
    return factory(**kwargs)
