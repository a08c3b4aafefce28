"""Samples of any source of images as files: where they lie, or copied into memory.

DALI's graph begins with the name of a file; a file in memory has one too, /proc/self/fd/NUMBER.
"""

import errno
import os
import resource
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor as Pool
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sslfast.data.executors.executor import BadSampleError
from sslfast.data.sources.check import Verdict, check_file
from sslfast.data.sources.images import ImageDataset
from sslfast.data.sources.source import Source


@dataclass(frozen=True)
class OpenFiles:
    """Files that can be read until ``close``.

    Attributes:
        paths: one for each sample.
        handles: descriptors of those in memory.
    """

    paths: list[str]
    handles: list[int] = field(default_factory=list)

    def close(self) -> None:
        """Free what is in memory."""
        close_files(self.handles)
        self.handles.clear()


class ImageFiles:
    """The samples of a source, of which ``read`` gives the bytes of a file, or pixels.

    Pixels are uint8 [H, W, 3], [H, W, 1] or [H, W]. An ``ImageDataset`` has files; its samples are
    not read here. A source may have ``sizes``, as an ImageDataset has; else every sample is read
    once to find them.

    Args:
        source: of images.
        threads: that read samples.

    Attributes:
        sizes: (height, width) of each sample.
        by_pillow: samples that DALI cannot be given, as far as is known.
    """

    def __init__(self, source: Source, threads: int) -> None:
        self._source = source
        self._paths = source.paths if isinstance(source, ImageDataset) else None
        self.sizes: list[tuple[int, int]] | None = getattr(source, "sizes", None)
        known: frozenset[str] = getattr(source, "by_pillow", frozenset())
        self.by_pillow = {i for i, path in enumerate(self._paths or []) if path in known}
        if self.sizes is None:
            with ThreadPoolExecutor(threads) as pool:
                seen = list(pool.map(self._look, range(len(source))))
            self.sizes = [(one.height, one.width) for one in seen]
            self.by_pillow |= {i for i, one in enumerate(seen) if one.by_pillow}

    def reserve(self, samples: int) -> None:
        """Make sure that so many can be open at a time."""
        if self._paths is None:
            allow_open_files(samples)

    def open(self, ids: Sequence[int], pool: Pool | None = None) -> OpenFiles:
        """Files of samples, read by the threads of a pool.

        Raises:
            BadSampleError: one cannot be read.
        """
        if self._paths is not None:
            return OpenFiles([self._paths[i] for i in ids])
        results = list((pool.map if pool else map)(self._in_memory, ids))
        handles = [one for one in results if isinstance(one, int)]
        files = OpenFiles([path_of(handle) for handle in handles], handles)
        for one in results:
            if isinstance(one, BadSampleError):
                files.close()
                raise one
        return files

    def name(self, i: int) -> str:
        """What sample ``i`` is called in the log."""
        return self._source.sample_name(i)

    def _in_memory(self, i: int) -> int | BadSampleError:
        try:
            return write_in_memory(self._source.read(i))
        except BadSampleError as error:
            return error
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                raise  # no sample's fault
            return BadSampleError(error.strerror or str(error))

    def _look(self, i: int) -> Verdict:
        if self._paths is not None:
            return check_file(self._paths[i])
        try:
            files = self.open([i])
        except BadSampleError as error:  # the loader finds it again, and leaves it out
            return Verdict(0, 0, str(error))
        try:
            return check_file(files.paths[0])
        finally:
            files.close()


def write_in_memory(sample: Any) -> int:
    """The bytes of a file, or pixels as a PPM file, without a name: its descriptor.

    Raises:
        TypeError: neither.
    """
    if isinstance(sample, (bytes, bytearray, memoryview)):
        parts: Iterable[Any] = (sample,)
    else:
        pixels = np.asarray(sample)
        pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3):
            given = f"{type(sample).__name__} {pixels.dtype} {list(pixels.shape)}"
            raise TypeError(
                "a source of images reads the bytes of a file, or pixels uint8 [H, W, 3], "
                f"[H, W, 1] or [H, W]; got {given}"
            )
        height, width, _ = pixels.shape
        pixels = np.ascontiguousarray(np.broadcast_to(pixels, (height, width, 3)))
        parts = (b"P6\n%d %d\n255\n" % (width, height), pixels.data)
    handle = os.memfd_create("sslfast-image")
    with os.fdopen(handle, "wb", closefd=False) as file:
        for part in parts:
            file.write(part)
    return handle


def path_of(handle: int) -> str:
    """The name of a file in memory."""
    return f"/proc/self/fd/{handle}"


def close_files(handles: Iterable[int]) -> None:
    """Close descriptors."""
    for handle in handles:
        os.close(handle)


def allow_open_files(count: int) -> None:
    """Raise the process's limit of open files, 1,024 on most systems, as far as that goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 1024
    if resource.RLIM_INFINITY != soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
