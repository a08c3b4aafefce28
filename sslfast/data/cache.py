"""Where sslfast keeps what it can make again, and how files appear there whole or not at all."""

import errno
import os
import shutil
import uuid
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


def _temporary(path: Path) -> Path:
    """A new name beside ``path``, whose folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")


def write_file(path: Path, content: bytes) -> None:
    """Write a file so that readers see the old one or the new one, never a part."""
    temporary = _temporary(path)
    try:
        with _explained(path):
            temporary.write_bytes(content)
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def make_folder(path: Path, fill: Callable[[Path], None]) -> Path:
    """Make a folder once: ``fill`` writes into a temporary one, which is then renamed.

    Of several processes that race, the first to finish wins and the others discard theirs.
    """
    if path.is_dir():
        return path
    temporary = _temporary(path)
    temporary.mkdir()
    try:
        with _explained(path):
            fill(temporary)
            os.rename(temporary, path)
    except OSError:
        shutil.rmtree(temporary)
        if not path.is_dir():  # not a lost race: a full disk, say
            raise
    except BaseException:
        shutil.rmtree(temporary)
        raise
    return path
