"""Pillow, the second decoder: for images that DALI does not read, or reads wrongly.

TIFF is among them: DALI's decoder makes noise of damaged files, and takes L*a*b* for RGB.
"""

import errno
from typing import Any

import numpy as np

from sslfast._extras import require
from sslfast.data.walk import open_file

_FORMATS = ("TIFF", "GIF", "PPM", "AVIF", "JPEG", "PNG", "WEBP", "BMP")


class BadPixelsError(RuntimeError):
    """Pillow cannot decode a file; the message says why."""


def pillow(part: str = "Image") -> Any:
    """A module of Pillow.

    Raises:
        MissingExtra: it is not installed.
    """
    purpose = "Reading TIFF, GIF, PPM and AVIF files"
    return require(f"PIL.{part}", extra="train", purpose=purpose)


def open_header(file: Any) -> Any:
    """The image in an open file, of which only the header is read; None if it is of no known kind.

    Not by ``Image.open``, whose limit of pixels is one for the whole process.
    """
    library = pillow()
    library.init()
    start = file.read(16)
    for name in _FORMATS:
        factory, accept = library.OPEN.get(name, (None, None))
        if factory is not None and accept(start) is True:
            file.seek(0)
            return factory(file, "")
    return None


def decode(path: str) -> np.ndarray:
    """Decode an image file as DALI does: RGB; alpha dropped, 16 bits scaled to 8, the first frame.

    The orientation noted in a TIFF file is applied, that in others is not.

    Returns:
        uint8 [height, width, 3].

    Raises:
        BadPixelsError: it cannot be decoded.
        MissingExtra: Pillow is not installed.
    """
    pillow()
    try:
        with open_file(path) as file:
            image = open_header(file)
            if image is None:
                raise BadPixelsError("no image that Pillow reads")
            image.load()
            return _to_rgb(image)
    except (BadPixelsError, MemoryError):
        raise
    except Exception as error:  # its readers let all kinds escape from damaged files
        if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise  # no file's fault
        raise BadPixelsError(f"Pillow: {error or type(error).__name__}") from error


def _to_rgb(image: Any) -> np.ndarray:
    if image.mode == "F":
        raise BadPixelsError("floating-point values, whose black and white are not known")
    if image.mode.startswith("I"):  # 16 bits
        gray = (np.asarray(image).astype(np.int64) * 255 + 32767) // 65535
        return np.repeat(gray.clip(0, 255).astype(np.uint8)[:, :, None], 3, 2)
    if image.mode == "LAB":
        cms = pillow("ImageCms")
        profiles = cms.createProfile("LAB"), cms.createProfile("sRGB")
        image = cms.profileToProfile(image, *profiles, outputMode="RGB")
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return np.asarray(image.convert("RGB"))
