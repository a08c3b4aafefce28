"""A quick look at image files: what they are, their size, and whether they are whole.

Only headers and end marks are read, so that a million files take minutes, not hours; results are
kept in the cache folder by path, size and time of change. What this cannot see (damage inside the
compressed data) the loader finds when it decodes.
"""

import hashlib
import json
import logging
import mmap
import os
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path

from .cache import write_file

logger = logging.getLogger("sslfast")

_VERSION = 1  # of the stored results; raise it when the checks change
Data = bytes | mmap.mmap


class BadImageError(ValueError):
    """A file is no image, no supported one, or not whole."""


@dataclass(frozen=True)
class Verdict:
    """What a look at a file showed.

    Attributes:
        height: in pixels, as stored.
        width: in pixels, as stored.
        reason: why the file is bad; None if it is good.
        frames: of a video; 1 for an image.
    """

    height: int
    width: int
    reason: str | None = None
    frames: int = 1


def check_files(
    paths: list[str],
    root: str,
    cache: Path,
    threads: int = 16,
    *,
    look: Callable[[str], Verdict] | None = None,
) -> list[Verdict]:
    """Check files, in parallel, reusing what is known of unchanged ones.

    Args:
        paths: files to check.
        root: the folder they are in; names the stored results.
        cache: the cache folder.
        threads: files looked at in parallel (the time goes into waiting for storage).
        look: at one file, such as ``video.check_video``; None: ``check_file``, for images.

    Returns:
        a verdict for each path.
    """
    # A folder may hold images and videos: each kind has results of its own.
    kind = b"" if look is None else b"\0" + look.__name__.encode()
    name = hashlib.sha256(os.fsencode(os.path.abspath(root)) + kind).hexdigest()[:24]
    stored = cache / "checks" / f"{name}.json"
    known = _load(stored)

    def check(path: str) -> tuple[list[int], Verdict]:
        try:
            status = os.stat(path)
            key = [status.st_size, status.st_mtime_ns]
            entry = known.get(path)
            if entry is not None and entry[:2] == key:
                return key, Verdict(*entry[2:])
            return key, (look or check_file)(path)
        except OSError as error:
            # Not the file's content: a right or a disk, which may be mended. Never stored.
            return [], Verdict(0, 0, error.strerror or str(error))

    with ThreadPoolExecutor(threads) as pool:
        results = list(pool.map(check, paths))
    fresh = {
        path: [*key, *astuple(verdict)]
        for path, (key, verdict) in zip(paths, results, strict=True)
        if key
    }
    if fresh != known:
        _store(stored, fresh)
    return [verdict for _, verdict in results]


def check_file(path: str) -> Verdict:
    """Check one file now.

    Raises:
        OSError: it cannot be opened.
    """
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return Verdict(0, 0, "empty file")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                height, width = _size(data)
            except BadImageError as error:
                return Verdict(0, 0, str(error))
            except (struct.error, IndexError):
                return Verdict(0, 0, "truncated in its header")
    if height < 1 or width < 1:
        return Verdict(0, 0, "no image size in its header")
    return Verdict(height, width)


def _load(stored: Path) -> dict[str, list]:
    if not stored.is_file():
        return {}
    try:
        content = json.loads(stored.read_bytes())
    except ValueError:
        logger.warning("%s is damaged; checking every file again", stored)
        return {}
    return content["files"] if content.get("version") == _VERSION else {}


def _store(stored: Path, files: dict[str, list]) -> None:
    try:
        write_file(stored, json.dumps({"version": _VERSION, "files": files}).encode())
    except OSError as error:
        logger.warning(
            "cannot keep the results of checking files (%s); set SSLFAST_CACHE to a folder that "
            "can be written to make the next start faster",
            error,
        )


def _size(data: Data) -> tuple[int, int]:
    for magic, parse in _PARSERS.items():
        if data[: len(magic)] == magic:
            return parse(data)
    raise BadImageError("not a JPEG, PNG, WebP, BMP or TIFF file, whatever its name says")


def _jpeg(data: Data) -> tuple[int, int]:
    at, size = 2, None
    while data[at + 1] != 0xDA:  # up to the start of the compressed data
        if data[at] != 0xFF:
            raise BadImageError("damaged JPEG header")
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            size = struct.unpack_from(">HH", data, at + 5)
        at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    # Some cameras append data after the end mark; a thumbnail's own mark comes before ``at``.
    if data[-2:] != b"\xff\xd9" and data.find(b"\xff\xd9", at) < 0:
        raise BadImageError("truncated: no JPEG end-of-image mark")
    if size is None:
        raise BadImageError("no image size in its header")
    return size[0], size[1]


def _png(data: Data) -> tuple[int, int]:
    if data[12:16] != b"IHDR":
        raise BadImageError("damaged PNG header")
    if data[-8:-4] != b"IEND" and data.find(b"IEND", 16) < 0:
        raise BadImageError("truncated: no PNG end chunk")
    width, height = struct.unpack_from(">II", data, 16)
    return height, width


def _webp(data: Data) -> tuple[int, int]:
    length = struct.unpack_from("<I", data, 4)[0]
    kind = data[8:16]
    if not kind.startswith(b"WEBP"):
        raise BadImageError("a RIFF file, but not WebP")
    if length + 8 > len(data):
        raise BadImageError("truncated: shorter than its WebP header says")
    if kind == b"WEBPVP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return height & 0x3FFF, width & 0x3FFF
    if kind == b"WEBPVP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    if kind == b"WEBPVP8X":
        low_w, high_w, low_h, high_h = struct.unpack_from("<HBHB", data, 24)
        return (high_h << 16 | low_h) + 1, (high_w << 16 | low_w) + 1
    raise BadImageError("damaged WebP header")


def _bmp(data: Data) -> tuple[int, int]:
    offset, header = struct.unpack_from("<II", data, 10)
    if header == 12:
        width, height, _, depth = struct.unpack_from("<HHHH", data, 18)
        compression = 0
    else:
        width, height, _, depth, compression = struct.unpack_from("<iiHHI", data, 18)
    height = abs(height)  # negative: rows from the top
    stored = (width * depth + 31) // 32 * 4 * height if compression in (0, 3) else 0
    if offset + stored > len(data):
        raise BadImageError("truncated: shorter than its BMP header says")
    return height, width


def _tiff(data: Data) -> tuple[int, int]:
    order = "<" if data[:2] == b"II" else ">"
    first = struct.unpack_from(order + "I", data, 4)[0]
    tags = {}
    for entry in range(struct.unpack_from(order + "H", data, first)[0]):
        at = first + 2 + 12 * entry
        tag, kind, count = struct.unpack_from(order + "HHI", data, at)
        code = {1: "B", 3: "H", 4: "I"}.get(kind)
        if code is None or tag not in (256, 257, 273, 279, 324, 325):
            continue
        layout = f"{order}{count}{code}"
        inline = struct.calcsize(layout) <= 4
        where = at + 8 if inline else struct.unpack_from(order + "I", data, at + 8)[0]
        tags[tag] = struct.unpack_from(layout, data, where)
    if 256 not in tags or 257 not in tags:
        raise BadImageError("no image size in its header")
    parts = [(tags.get(273, ()), tags.get(279, ())), (tags.get(324, ()), tags.get(325, ()))]
    ends = [at + length for ats, lengths in parts for at, length in zip(ats, lengths, strict=False)]
    if not ends or max(ends) > len(data):
        raise BadImageError("truncated: shorter than its TIFF header says")
    return tags[257][0], tags[256][0]


_PARSERS: dict[bytes, Callable[[Data], tuple[int, int]]] = {
    b"\xff\xd8": _jpeg,
    b"\x89PNG\r\n\x1a\n": _png,
    b"RIFF": _webp,
    b"BM": _bmp,
    b"II*\0": _tiff,
    b"MM\0*": _tiff,
}
