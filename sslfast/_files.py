"""Where sslfast keeps what it can make again, and how files appear whole or not at all."""

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What the system says where there is no room, and how people say it.
NO_ROOM = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is larger than the file system or 'ulimit -f' allows",
}

_TEMPORARY = ".sslfast-tmp"


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
def replacing(path: Path, *, shared: bool = False, sync: bool = False) -> Iterator[Path]:
    """A temporary path beside ``path``; what is written there takes its name in the end.

    So ``path`` holds all of the new file or what it held before. Nothing is left after an error;
    what a kill leaves goes when the file is written again, or by ``remove_leftovers``.

    Args:
        path: a file, or a folder that does not exist; the folder around it exists.
        shared: others may write the same file meanwhile: each has a temporary path of its own.
        sync: the bytes reach the disk first, so that a power cut leaves no half file either.
    """
    own = f".{uuid.uuid4().hex}" if shared else ""
    temporary = path.with_name(f".{path.name}{own}{_TEMPORARY}")
    try:
        yield temporary
        if sync:
            _sync(temporary)
        os.replace(temporary, path)
        if sync:
            _sync(path.parent)
    except BaseException:
        _remove(temporary)
        raise


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left of files that they were writing in a folder.

    Nobody else may be writing there.
    """
    for path in folder.glob(f".*{_TEMPORARY}"):
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
