"""Things by name, found by importing every module of a package once: a new one is a new file."""

import importlib
import pkgutil
from typing import Generic, TypeVar

from sslfast._suggest import did_you_mean

T = TypeVar("T")


class Registry(Generic[T]):
    """What the modules of a package register when they are imported.

    Args:
        package: is walked when a name is first asked for.
        what: a thing is called in messages.

    Attributes:
        found: things by name, so far.
    """

    def __init__(self, package: str, what: str) -> None:
        self.found: dict[str, T] = {}
        self._package, self._what = package, what
        self._walked = False

    def add(self, name: str, thing: T) -> T:
        """Register a thing and return it.

        Raises:
            ValueError: the name is taken.
        """
        if name in self.found:
            raise ValueError(f"{self._what} '{name}' is registered already")
        self.found[name] = thing
        return thing

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self.all())

    def all(self) -> dict[str, T]:
        """All things by name."""
        if not self._walked:
            self._walked = True  # before the walk: a module may ask for what came before it
            try:
                package = importlib.import_module(self._package)
                for module in pkgutil.iter_modules(package.__path__):
                    importlib.import_module(f"{self._package}.{module.name}")
            except BaseException:
                self._walked = False  # the next call meets the error again, not half of the things
                raise
        return self.found

    def get(self, name: str) -> T:
        """The thing of that name.

        Raises:
            ValueError: there is none; the message lists those that there are.
        """
        known = self.names()
        if name not in known:
            raise ValueError(
                f"unknown {self._what} '{name}'; known: {known}.{did_you_mean(name, known)}"
            )
        return self.found[name]
