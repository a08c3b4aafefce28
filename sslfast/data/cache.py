"""Where sslfast keeps what it can make again, and how files appear there whole or not at all."""

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_folder(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """``cache_dir``, else $SSLFAST_CACHE, else $XDG_CACHE_HOME/sslfast, else ~/.cache/sslfast.

    Raises:
        ValueError: none of them is set, and there is no home folder.
    """
    if cache_dir is not None:
        return Path(cache_dir)
    if os.environ.get("SSLFAST_CACHE"):
        return Path(os.environ["SSLFAST_CACHE"])
    base = os.environ.get("XDG_CACHE_HOME")
    if not base and os.path.expanduser("~") == "~":
        raise ValueError(
            "there is no home folder (HOME is not set) for what sslfast can make again, such as "
            "built-in data sets: set SSLFAST_CACHE to a folder that can be written"
        )
    return Path(base or os.path.expanduser("~/.cache")) / "sslfast"


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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
        if error.errno in _FULL:
            what = "no room for sslfast's cache: free some, or set SSLFAST_CACHE to a folder "
            what += "elsewhere"
        raise CacheError(error.errno, what, str(error.filename or path)) from error


def _lead_to_each_other(one: str | Path, other: Path) -> bool:
    """Whether one path is the other, or a folder above it or below it."""
    first, second = Path(one).absolute(), other.absolute()
    return first.is_relative_to(second) or second.is_relative_to(first)


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A name beside ``path``, whose folder is made; one process at a time writes in that folder.

    Whatever has such a name before is left by a killed process, and removed.

    Raises:
        CacheError: it cannot be written.
    """
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path.parent / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for left in path.parent.glob(".*.tmp"):
                _remove(left)
            temporary = path.with_name(f".{path.name}.tmp")
            try:
                yield temporary
            except BaseException:
                _remove(temporary)
                raise


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_file(path: Path, content: bytes) -> None:
    """Write a file so that readers see the old one or the new one, never a part."""
    with _temporary(path) as temporary:
        temporary.write_bytes(content)
        os.replace(temporary, path)


def make_folder(path: Path, fill: Callable[[Path], None]) -> Path:
    """Make a folder once: ``fill`` writes into a temporary one, which is then renamed.

    Of several processes that want it, one makes it while the others wait.
    """
    if os.path.isdir(path):  # False also where nobody may look, which is explained below
        return path
    with _temporary(path) as temporary:
        if not path.is_dir():
            temporary.mkdir()
            fill(temporary)
            os.rename(temporary, path)
    return path
