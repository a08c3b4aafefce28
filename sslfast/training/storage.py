"""Files that are either whole or not there, and what to say when the disk is full."""

import errno
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is larger than the file system or 'ulimit -f' allows",
}


class StorageError(OSError):
    """A file could not be written; the message says what to do."""

    def __str__(self) -> str:
        return str(self.strerror)


@contextmanager
def explain_full_disk(path: Path) -> Iterator[None]:
    """Turn the errors of a full disk into a StorageError that names the way out."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL or isinstance(error, StorageError):
            raise
        raise StorageError(
            error.errno,
            f"cannot write {path}: {_FULL[error.errno]}. What was saved before is intact. Make "
            "room (or lower keep_checkpoints), then run the same command again: it goes on from "
            "the last checkpoint",
        ) from None


class _Writer:
    """An unbuffered file that keeps its first error for later.

    torch's zip writer answers an exception from a file's write() with an error of its own, which
    hides the cause.
    """

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        rest = memoryview(data).cast("B")
        while rest and self.error is None:
            try:
                rest = rest[self._file.write(rest) :]
            except OSError as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        """Nothing is buffered."""


def write_atomically(path: Path, write: Callable[[Any], None]) -> None:
    """Write a file so that ``path`` holds either all of it or what it held before.

    The bytes go to a temporary file beside it, reach the disk, and then take its name: neither a
    kill nor a power cut leaves half a file.

    Args:
        path: the file; its folder exists.
        write: is called with a binary file-like object (``write`` and ``flush``).

    Raises:
        StorageError: the disk is full.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with explain_full_disk(path):
            with open(temporary, "wb", buffering=0) as file:
                writer = _Writer(file)
                write(writer)
                if writer.error is not None:
                    raise writer.error
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
