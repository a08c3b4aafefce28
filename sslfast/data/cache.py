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


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Say of a full disk that it is the cache's, and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        what = "no room for sslfast's cache: free some, or set SSLFAST_CACHE to a folder elsewhere"
        raise OSError(error.errno, what, str(path)) from error


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A name beside ``path``, whose folder is made; one process at a time writes in that folder.

    Whatever has such a name before is left by a killed process, and removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.parent / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in path.parent.glob(".*.tmp"):
            _remove(left)
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            with _explained(path):
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
    if path.is_dir():
        return path
    with _temporary(path) as temporary:
        if not path.is_dir():
            temporary.mkdir()
            fill(temporary)
            os.rename(temporary, path)
    return path
