"""Where sslfast keeps what it can make again, and how files appear there whole or not at all."""

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path


def cache_folder(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """``cache_dir``, else $SSLFAST_CACHE, else $XDG_CACHE_HOME/sslfast, else ~/.cache/sslfast."""
    if cache_dir is not None:
        return Path(cache_dir)
    if os.environ.get("SSLFAST_CACHE"):
        return Path(os.environ["SSLFAST_CACHE"])
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "sslfast"


def _temporary(path: Path) -> Path:
    """A new name beside ``path``, whose folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")


def write_file(path: Path, content: bytes) -> None:
    """Write a file so that readers see the old one or the new one, never a part."""
    temporary = _temporary(path)
    try:
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
