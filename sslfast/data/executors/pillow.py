"""Pillow, the second decoder: for images that DALI does not read, or reads wrongly.

TIFF is among them: DALI's decoder makes noise of damaged files, and takes L*a*b* for RGB.
"""

import errno
from typing import Any

import numpy as np

from sslfast.data.sources.header import open_header, pillow
from sslfast.data.sources.walk import open_file


class BadPixelsError(RuntimeError):
    """Pillow cannot decode a file; the message says why."""


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
