"""Old names of public keywords and attributes, which still work until sslfast 0.2."""

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

C = TypeVar("C", bound=type)

# Old names by the new ones' owner.
VIEW = {
    "grey_prob": "gray_prob",
    "recolours": "recolors",
    "solarise_prob": "solarize_prob",
}
PROBE_RESULT = {"regularisation": "regularization"}


class OldName(DeprecationWarning):
    """An old name was used; the message gives the new one."""


def with_new_names(
    values: Mapping[str, Any],
    names: Mapping[str, str],
    *,
    replaces: bool = False,
    stacklevel: int = 3,
) -> dict[str, Any]:
    """Keywords under their new names.

    Args:
        values: keywords.
        names: new names by old ones.
        replaces: both names may be there, as ``dataclasses.replace`` gives all fields beside the
            change; then the old name's value counts.
        stacklevel: who is warned, as in ``warnings.warn``.

    Raises:
        ValueError: a keyword under both names.

    Warns:
        OldName: for each old one.
    """
    found = {name: value for name, value in values.items() if name not in names}
    for old in values.keys() & names.keys():
        if names[old] in found and not replaces:
            raise ValueError(f"{old} is the old name of {names[old]}: give one of them")
        _warn(old, names[old], stacklevel + 1)
        found[names[old]] = values[old]
    return found


def accepts_old_names(names: Mapping[str, str]) -> Callable[[C], C]:
    """Let a dataclass be made with old names, and have attributes of these (a decorator).

    Args:
        names: new names by old ones.
    """

    def decorate(dataclass: C) -> C:
        make: Callable[..., None] = dataclass.__init__  # type: ignore[misc]

        @functools.wraps(make)
        def with_old_names(self: Any, *args: Any, **kwargs: Any) -> None:
            make(self, *args, **with_new_names(kwargs, names, replaces=True))

        dataclass.__init__ = with_old_names  # type: ignore[misc]
        for old, new in names.items():
            setattr(dataclass, old, _attribute(old, new))
        return dataclass

    return decorate


def _attribute(old: str, new: str) -> property:
    def get(self: Any) -> Any:
        _warn(old, new, 3)
        return getattr(self, new)

    return property(get, doc=f"The old name of ``{new}``.")


def _warn(old: str, new: str, stacklevel: int) -> None:
    text = f"{old} is now {new}; the old name works until sslfast 0.2"
    warnings.warn(text, OldName, stacklevel=stacklevel)
