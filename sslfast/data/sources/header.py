"""Headers of image files by Pillow, without its limit of pixels for the whole process."""

from typing import Any

from sslfast._extras import require

_FORMATS = ("TIFF", "GIF", "PPM", "AVIF", "JPEG", "PNG", "WEBP", "BMP")


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
