"""Files that are whole or not there, their checksums, and what to say when the disk is full."""

import io
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sslfast._files import NO_ROOM, replacing


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
        if error.errno not in NO_ROOM or isinstance(error, StorageError):
            raise
        raise StorageError(
            error.errno,
            f"cannot write {path}: {NO_ROOM[error.errno]}. What was saved before is intact. Make "
            "room (or lower keep_checkpoints), then run the same command again: it goes on from "
            "the last checkpoint",
        ) from None


# The last line of a file that is written with a checksum: of all bytes before this line.
_CHECKSUM = "\nsslfast crc32 {:08x}\n"
_CHECKSUM_SIZE = len(_CHECKSUM.format(0))
_CHUNK = 1 << 22


class _Writer:
    """An unbuffered file that sums up what it is given, and keeps its first error for later.

    torch's zip writer answers an exception from a file's write() with an error of its own, which
    hides the cause.
    """

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self.error: OSError | None = None
        self.crc32 = 0

    def write(self, data: bytes) -> int:
        rest = memoryview(data).cast("B")
        self.crc32 = zlib.crc32(rest, self.crc32)
        while rest and self.error is None:
            try:
                rest = rest[self._file.write(rest) :]
            except OSError as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        """Do nothing: no byte waits in a buffer."""


def write_atomically(path: Path, write: Callable[[Any], None], *, checksum: bool = False) -> None:
    """Write a file so that ``path`` holds either all of it or what it held before.

    The bytes go to a temporary file beside it, reach the disk, and then take its name: neither a
    kill nor a power cut leaves half a file. What a kill leaves of the temporary one goes when the
    file is written again, or by ``remove_leftovers``.

    Args:
        path: the file; its folder exists.
        write: is called with a binary file-like object (``write`` and ``flush``).
        checksum: end the file with a line that ``has_good_checksum`` compares. For formats that
            take something after their end, as zip files do.

    Raises:
        StorageError: the disk is full.
    """
    with (
        explain_full_disk(path),
        replacing(path, sync=True) as temporary,
        open(temporary, "wb", buffering=0) as file,
    ):
        writer = _Writer(file)
        write(writer)
        if checksum:
            writer.write(_CHECKSUM.format(writer.crc32).encode())
        if writer.error is not None:
            raise writer.error


def has_good_checksum(path: Path) -> bool:
    """Compare a file with the checksum at its end.

    Returns:
        False where there is none to compare.

    Raises:
        ValueError: the file is not as it was written.
    """
    with open(path, "rb") as file:
        crc32, rest = 0, os.fstat(file.fileno()).st_size - _CHECKSUM_SIZE
        while rest > 0 and (chunk := file.read(min(rest, _CHUNK))):
            crc32 = zlib.crc32(chunk, crc32)
            rest -= len(chunk)
        line = file.read()
    if line == _CHECKSUM.format(crc32).encode():
        return True
    if line.startswith(_CHECKSUM.split("{")[0].encode()):
        raise ValueError("its checksum differs")
    return False


def write_text(path: Path, text: str) -> None:
    """``write_atomically`` of a text, as UTF-8."""
    write_atomically(path, lambda file: file.write(text.encode()))
