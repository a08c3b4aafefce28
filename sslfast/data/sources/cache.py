"""What sslfast can make again: one process at a time writes it, and errors say what to do."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sslfast._files import NO_ROOM, remove_leftovers, replacing


class CacheError(OSError):
    """The cache cannot be written; the message says so, and what to do."""


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Say of what goes wrong in writing ``path`` that it is the cache's, and what to do.

    What names a file elsewhere, such as one that is read to fill the cache, stays as it is.
    """
    try:
        yield
    except CacheError:
        raise
    except OSError as error:
        if error.errno is None or not _lead_to_each_other(error.filename or path, path.parent):
            raise
        what = f"sslfast's cache cannot be written ({error.strerror}): "
        what += "set SSLFAST_CACHE to another folder"
        if error.errno in NO_ROOM:
            what = "no room for sslfast's cache: free some, or set SSLFAST_CACHE to a folder "
            what += "elsewhere"
        raise CacheError(error.errno, what, str(error.filename or path)) from error


def _lead_to_each_other(one: str | Path, other: Path) -> bool:
    """Whether one path is the other, or a folder above it or below it."""
    first, second = Path(one).absolute(), other.absolute()
    return first.is_relative_to(second) or second.is_relative_to(first)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """The folder of ``path`` is made; one process at a time writes in it.

    What killed processes left there is removed.

    Raises:
        CacheError: it cannot be written.
    """
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path.parent / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            remove_leftovers(path.parent)
            yield


def write_file(path: Path, content: bytes) -> None:
    """Write a file so that readers see the old one or the new one, never a part."""
    with _alone(path), replacing(path) as temporary:
        temporary.write_bytes(content)


def make_folder(path: Path, fill: Callable[[Path], None]) -> Path:
    """Make a folder once: ``fill`` writes into a temporary one, which is then renamed.

    Of several processes that want it, one makes it while the others wait.
    """
    if os.path.isdir(path):  # False also where nobody may look, which is explained below
        return path
    with _alone(path):
        if not path.is_dir():
            with replacing(path) as temporary:
                temporary.mkdir()
                fill(temporary)
    return path
