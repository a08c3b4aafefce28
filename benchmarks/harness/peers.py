"""Other libraries as baselines, from the folder that `make peers` fills (tests/peers.py)."""

import sys
from collections.abc import Callable
from typing import Any

from benchmarks.harness.environment import ROOT

sys.path.insert(0, str(ROOT / "tests"))
from peers import load as load
from peers import load_file as load_file


class Lazy:
    """A peer that is imported when it is first called: one that is missing fails alone."""

    def __init__(self, load: Callable[[], Callable[..., Any]]) -> None:
        self.load = load
        self.function: Callable[..., Any] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the peer, imported now if it was not before."""
        if self.function is None:
            self.function = self.load()
        return self.function(*args, **kwargs)
