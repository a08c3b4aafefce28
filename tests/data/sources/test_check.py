import os
import struct

import pytest
from PIL import Image

from sslfast.data.sources.check import Verdict, check_file

WHOLE = {
    "plain.jpg": {},
    "progressive.jpg": {"progressive": True},
    "plain.png": {},
    "lossy.webp": {},
    "lossless.webp": {"lossless": True},
    "lossless_extended.webp": {"lossless": True, "icc_profile": bytes(129)},
    "extended.webp": {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0"},
    "plain.bmp": {},
    "plain.tif": {},
    "lzw.tif": {"compression": "tiff_lzw"},
}
BY_PILLOW = (".tif", ".gif", ".ppm", ".pgm", ".avif")


def is_pillows(path):
    return path.suffix in BY_PILLOW or path.stem == "lossless_extended"


@pytest.fixture(params=WHOLE)
def whole(request, tmp_path, pictures):
    path = tmp_path / request.param
    Image.fromarray(pictures[3]).resize((40, 24)).save(path, **WHOLE[request.param])
    return path


def test_size_of_each_format(whole):
    assert check_file(str(whole)) == Verdict(24, 40, by_pillow=is_pillows(whole))


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_a_truncated_file_is_found(whole, kept):
    content = whole.read_bytes()
    whole.write_bytes(content[: int(kept * len(content))])
    verdict = check_file(str(whole))
    assert verdict.reason is not None
    assert "truncated" in verdict.reason


def test_the_content_counts_not_the_name(whole):
    renamed = whole.rename(whole.with_suffix(".other"))
    assert check_file(str(renamed)) == Verdict(24, 40, by_pillow=is_pillows(whole))


def test_data_after_the_end_mark_is_allowed(tmp_path, pictures):
    for name in ("a.jpg", "a.png"):
        path = tmp_path / name
        Image.fromarray(pictures[0]).save(path)
        path.write_bytes(path.read_bytes() + b"appended by a camera" * 9)
        assert check_file(str(path)) == Verdict(32, 32)


def test_a_thumbnails_end_mark_does_not_hide_truncation(tmp_path, pictures):
    path = tmp_path / "a.jpg"
    Image.fromarray(pictures[0]).save(path)
    content = path.read_bytes()
    thumbnail = b"Exif\0\0" + content
    segment = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    path.write_bytes(content[:2] + segment + content[2:])
    assert check_file(str(path)) == Verdict(32, 32)
    path.write_bytes(content[:2] + segment + content[2:-30])
    assert "truncated" in check_file(str(path)).reason


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"GIF" + bytes(50), "not a JPEG"),
        (b"GIF89a" + bytes(50), "damaged header (image not found"),
        (b"P6 40", "damaged header"),
        (b"\xff\xd8\xff", "truncated"),
        (b"\xff\xd8" + bytes(50), "damaged JPEG"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "damaged PNG"),
        (b"RIFF\x10\0\0\0WAVEfmt " + bytes(50), "not WebP"),
        (b"BM", "truncated"),
        (b"II*\0\x08\0\0\0\0\0" + bytes(50), "no image size"),
    ],
)
def test_what_is_no_image_is_said_to_be_none(tmp_path, content, reason):
    path = tmp_path / "file.jpg"
    path.write_bytes(content)
    assert reason in check_file(str(path)).reason


@pytest.mark.parametrize("suffix", BY_PILLOW[1:])
def test_the_kinds_that_pillow_reads(tmp_path, pictures, suffix):
    path = tmp_path / f"image{suffix}"
    Image.fromarray(pictures[3]).resize((40, 24)).save(path)
    assert check_file(str(path)) == Verdict(24, 40, by_pillow=True)


def test_stray_bytes_between_the_segments_of_a_jpeg(tmp_path, pictures):
    path = tmp_path / "a.jpg"
    Image.fromarray(pictures[0]).save(path)
    content = path.read_bytes()
    table = content.index(b"\xff\xdb")
    for stray in (b"\0", b"\x12\x34", b"\xff\0\x07"):
        path.write_bytes(content[:table] + stray + content[table:])
        assert check_file(str(path)) == Verdict(32, 32, by_pillow=True)


def tiff(width, height, pixels, bits=(8, 8, 8), compression=1):
    """A little-endian TIFF of one strip."""
    more = struct.pack("<3H", *bits) if len(bits) > 1 else b""
    entries = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, len(bits), 8 if more else bits[0]),
        (259, 3, 1, compression),
        (262, 3, 1, 2 if more else 1),
        (273, 4, 1, 8 + len(more)),
        (277, 3, 1, len(bits)),
        (279, 4, 1, len(pixels)),
    ]
    content = more + pixels
    table = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *e) for e in entries)
    return b"II*\0" + struct.pack("<I", 8 + len(content)) + content + table + bytes(4)


def test_a_tiff_that_promises_more_than_it_holds(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(5, 3, bytes(45)))
    assert check_file(str(path)) == Verdict(3, 5, by_pillow=True)
    path.write_bytes(tiff(60_000, 60_000, b"x"))
    assert "promises more pixels" in check_file(str(path)).reason
    path.write_bytes(tiff(5, 4, bytes(45)))
    assert "promises more pixels" in check_file(str(path)).reason
    path.write_bytes(tiff(60_000, 60_000, b"x", compression=5))  # left to the limit of pixels
    assert check_file(str(path)) == Verdict(60_000, 60_000, by_pillow=True)
    path.write_bytes(tiff(5, 3, bytes(60), bits=(32,)))
    assert "32 bits" in check_file(str(path)).reason


def test_a_file_too_large_to_be_read_is_not_searched(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n")
    os.truncate(path, 2**40)  # takes no room
    assert "larger than 2 GiB" in check_file(str(path)).reason
