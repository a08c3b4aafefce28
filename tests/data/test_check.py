import struct

import pytest
from PIL import Image

from sslfast.data.check import Verdict, check_file

WHOLE = {
    "plain.jpg": {},
    "progressive.jpg": {"progressive": True},
    "plain.png": {},
    "lossy.webp": {},
    "lossless.webp": {"lossless": True},
    "extended.webp": {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0"},
    "plain.bmp": {},
    "plain.tif": {},
    "lzw.tif": {"compression": "tiff_lzw"},
}


@pytest.fixture(params=WHOLE)
def whole(request, tmp_path, pictures):
    path = tmp_path / request.param
    Image.fromarray(pictures[3]).resize((40, 24)).save(path, **WHOLE[request.param])
    return path


def test_size_of_each_format(whole):
    assert check_file(str(whole)) == Verdict(24, 40)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_a_truncated_file_is_found(whole, kept):
    content = whole.read_bytes()
    whole.write_bytes(content[: int(kept * len(content))])
    verdict = check_file(str(whole))
    assert verdict.reason is not None
    assert "truncated" in verdict.reason


def test_the_content_counts_not_the_name(whole):
    renamed = whole.rename(whole.with_suffix(".other"))
    assert check_file(str(renamed)) == Verdict(24, 40)


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
        (b"GIF89a" + bytes(50), "not a JPEG"),
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
