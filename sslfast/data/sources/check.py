"""A quick look at image files: what they are, their size, whether they are whole, who decodes them.

Only headers and end marks are read, so that a million files take minutes, not hours; results are
kept in the cache folder by path, size and time of change. What this cannot see (damage inside the
compressed data) the loader finds when it decodes.

Why not by Pillow, which reads sizes off headers too: it does not say whether a file is cut off
(where the end mark belongs is known after a walk over the segments), whether a JPEG has stray bytes
or an extended WebP is lossless, which DALI refuses or misreads, or whether a TIFF holds the bytes
it promises. The walk that finds these passes the size on its way, and Pillow would come on top.
Files a second on one thread, cached, here and by Pillow 13: JPEG of 500 x 375 with EXIF 19,600 and
9,100, JPEG of 12 megapixels 28,800 and 32,700, such a WebP 37,400 and 2,000, small TIFF 11,900 and
3,900. Not cached, Pillow is faster (two to twelve times, of JPEG), as it never reads the end.
"""

import hashlib
import json
import logging
import mmap
import os
import stat
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, replace
from pathlib import Path

from sslfast._extras import MissingExtra
from sslfast.data.sources.cache import write_file
from sslfast.data.sources.header import open_header
from sslfast.data.sources.walk import NOT_REGULAR, open_file

logger = logging.getLogger("sslfast")

_VERSION = 2  # of the stored results; raise it when the checks change
_MOST_BYTES = 2**31  # of an image file; DALI reads it whole
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
        by_pillow: whether Pillow is to decode it, not DALI.
        length: bytes.
    """

    height: int
    width: int
    reason: str | None = None
    frames: int = 1
    by_pillow: bool = False
    length: int = 0


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
            if not stat.S_ISREG(status.st_mode):
                return [], Verdict(0, 0, NOT_REGULAR)
            key = [status.st_size, status.st_mtime_ns]
            entry = known.get(path)
            if entry is not None and entry[:2] == key:
                return key, Verdict(*entry[2:])
            return key, replace((look or check_file)(path), length=status.st_size)
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
    with open_file(path) as file:
        length = os.fstat(file.fileno()).st_size
        if length == 0:
            return Verdict(0, 0, "empty file")
        if length > _MOST_BYTES:
            return Verdict(0, 0, "larger than 2 GiB")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                height, width, by_pillow = _look(data)
            except BadImageError as error:
                return Verdict(0, 0, str(error))
            except (struct.error, IndexError):
                return Verdict(0, 0, "truncated in its header")
    if height < 1 or width < 1:
        return Verdict(0, 0, "no image size in its header")
    return Verdict(height, width, by_pillow=by_pillow)


def _load(stored: Path) -> dict[str, list]:
    try:
        content = json.loads(stored.read_bytes())
    except OSError:  # there is none, or _store says what is wrong
        return {}
    except ValueError:
        logger.warning("%s is damaged; checking every file again", stored)
        return {}
    return content["files"] if content.get("version") == _VERSION else {}


def _store(stored: Path, files: dict[str, list]) -> None:
    try:
        write_file(stored, json.dumps({"version": _VERSION, "files": files}).encode())
    except OSError as error:
        logger.warning(
            "cannot keep the results of checking files, which make the next start faster: %s", error
        )


def _look(data: Data) -> tuple[int, int, bool]:
    """Height, width, and whether Pillow decodes it."""
    for magic, parse in _PARSERS.items():
        if data[: len(magic)] == magic:
            return parse(data)
    return _other(data)


def _other(data: Data) -> tuple[int, int, bool]:
    try:
        image = open_header(data)
    except MissingExtra:
        raise
    except Exception as error:  # Pillow's readers let all kinds escape from damaged files
        raise BadImageError(f"damaged header ({error or type(error).__name__})") from error
    if image is None:
        raise BadImageError(
            "not a JPEG, PNG, WebP, BMP, TIFF, GIF, PPM or AVIF file, whatever its name says"
        )
    return image.height, image.width, True


def _jpeg(data: Data) -> tuple[int, int, bool]:
    at, size, stray = 2, None, False
    while data[at] != 0xFF or data[at + 1] != 0xDA:  # up to the start of the compressed data
        marker = data[at + 1]
        if data[at] != 0xFF or marker == 0:  # libjpeg passes over stray bytes, DALI does not
            at, stray = data.find(b"\xff", at + 1), True
            if at < 0:
                raise BadImageError("damaged JPEG header")
            continue
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
    return size[0], size[1], stray


def _png(data: Data) -> tuple[int, int, bool]:
    if data[12:16] != b"IHDR":
        raise BadImageError("damaged PNG header")
    if data[-8:-4] != b"IEND" and data.find(b"IEND", 16) < 0:
        raise BadImageError("truncated: no PNG end chunk")
    width, height = struct.unpack_from(">II", data, 16)
    return height, width, False


def _webp(data: Data) -> tuple[int, int, bool]:
    length = struct.unpack_from("<I", data, 4)[0]
    kind = data[8:16]
    if not kind.startswith(b"WEBP"):
        raise BadImageError("a RIFF file, but not WebP")
    if length + 8 > len(data):
        raise BadImageError("truncated: shorter than its WebP header says")
    if kind == b"WEBPVP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return height & 0x3FFF, width & 0x3FFF, False
    if kind == b"WEBPVP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1, False
    if kind == b"WEBPVP8X":
        low_w, high_w, low_h, high_h = struct.unpack_from("<HBHB", data, 24)
        # Of a lossless image between other chunks, DALI misreads the chunks.
        at = 30
        while data[at : at + 4] not in (b"VP8 ", b"VP8L", b"ANIM") and at < len(data):
            length = struct.unpack_from("<I", data, at + 4)[0]
            at += 8 + length + length % 2
        lossless = data[at : at + 4] == b"VP8L"
        return (high_h << 16 | low_h) + 1, (high_w << 16 | low_w) + 1, lossless
    raise BadImageError("damaged WebP header")


def _bmp(data: Data) -> tuple[int, int, bool]:
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
    return height, width, False


# Width, height, bits, compression, colours, orientation; offsets and lengths of strips and tiles.
_TIFF_TAGS = (256, 257, 258, 259, 262, 274, 273, 279, 324, 325)


def _tiff(data: Data) -> tuple[int, int, bool]:
    order = "<" if data[:2] == b"II" else ">"
    first = struct.unpack_from(order + "I", data, 4)[0]
    tags = {}
    for entry in range(struct.unpack_from(order + "H", data, first)[0]):
        at = first + 2 + 12 * entry
        tag, kind, count = struct.unpack_from(order + "HHI", data, at)
        code = {1: "B", 3: "H", 4: "I"}.get(kind)
        if code is None or tag not in _TIFF_TAGS:
            continue
        layout = f"{order}{count}{code}"
        inline = struct.calcsize(layout) <= 4
        where = at + 8 if inline else struct.unpack_from(order + "I", data, at + 8)[0]
        tags[tag] = struct.unpack_from(layout, data, where)
    if not tags.get(256) or not tags.get(257):
        raise BadImageError("no image size in its header")
    height, width = tags[257][0], tags[256][0]
    parts = [(tags.get(273, ()), tags.get(279, ())), (tags.get(324, ()), tags.get(325, ()))]
    pairs = [pair for ats, lengths in parts for pair in zip(ats, lengths, strict=False)]
    if not pairs or max(map(sum, pairs)) > len(data):
        raise BadImageError("truncated: shorter than its TIFF header says")
    depths = tags.get(258, (1,))
    if max(depths, default=0) > 16:
        raise BadImageError(f"values of {max(depths)} bits; save it with 8 or 16")
    plain = tags.get(259, (1,))[:1] == (1,) and tags.get(262, (2,))[:1] != (6,)  # no YCbCr
    if plain and sum(length for _, length in pairs) < height * (width * sum(depths) // 8):
        raise BadImageError("truncated: its TIFF header promises more pixels than it has")
    turned = tags.get(274, (1,))[:1] in ((5,), (6,), (7,), (8,))  # Pillow turns it back
    return (width, height, True) if turned else (height, width, True)


_PARSERS: dict[bytes, Callable[[Data], tuple[int, int, bool]]] = {
    b"\xff\xd8": _jpeg,
    b"\x89PNG\r\n\x1a\n": _png,
    b"RIFF": _webp,
    b"BM": _bmp,
    b"II*\0": _tiff,
    b"MM\0*": _tiff,
}
